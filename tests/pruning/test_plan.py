"""Plans: which channels are kept, and how many."""

import math
from collections.abc import Callable

import pytest
import torch
from networks import SHAPE, parameters, plan_for
from torch import nn

import cpprune
from cpprune.models.fingerprint import fingerprint
from cpprune.models.resize import layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.schedule import events
from cpprune.pruning.surgery import apply_plan

ALL = ["magnitude", "bn_scale", "group_norm"]
Groups = list[tuple[list[str], list[str], list[str]]]
Make = Callable[..., nn.Module]


@pytest.mark.parametrize("criterion", ALL)
@pytest.mark.parametrize(
    ("steps", "counts"),
    [
        (1, [44_784]),
        (3, [96_452, 69_388, 44_784]),
        (5, [109_054, 90_424, 74_684, 59_414, 44_784]),
    ],
)
def test_parameters_of_the_recipe(
    criterion: str, steps: int, counts: list[int], make_network: Make
) -> None:
    network = make_network()
    original = layer_widths(network)
    found = []
    config = PruneConfig(ratio=0.41, steps=steps, criterion=criterion)
    for event in events(config):
        plan = plan_for(
            network,
            original_widths=original,
            ratio=0.41,
            criterion=criterion,
            fraction=event.fraction,
        )
        apply_plan(network, SHAPE, plan)
        found.append(parameters(network))
    assert found == counts
    widths = layer_widths(network)
    stages = {"in_c.0": 18, "stage1": 18, "stage2": 37, "stage3": 75}
    for name, width in widths.items():
        assert width == stages.get(name, stages.get(name.split(".")[0]))
    # It is the CP-ResNet of these widths.
    control = cpprune.build_model("cp_resnet", widths=[18, 37, 75])
    control.load_state_dict(network.state_dict())
    assert network.feed_forward[0].out_channels == 10


@pytest.mark.parametrize("ratio", [0.407, 0.414])
def test_nearby_ratios_leave_the_same(ratio: float, make_network: Make) -> None:
    network = make_network()
    apply_plan(network, SHAPE, plan_for(network, ratio=ratio))
    assert parameters(network) == 44_784


@pytest.mark.parametrize("criterion", ALL)
def test_the_highest_scores_are_kept(criterion: str, make_network: Make, groups: Groups) -> None:
    network = make_network()
    gammas = {}
    if criterion == "bn_scale":
        # The scores of this one are easily read off.
        for _, norms, _ in groups:
            weights = [network.get_submodule(name).weight for name in norms]
            gammas[norms[0]] = torch.stack(weights).double().mean(0)
    for entry in plan_for(network, criterion=criterion).groups:
        assert entry.score_kept[0] > entry.score_cut[1]
        assert entry.score_kept[0] <= entry.score_kept[1]
        assert entry.score_cut[0] <= entry.score_cut[1]
        for convs, norms, _ in groups:
            if entry.layer in convs and gammas:
                best = gammas[norms[0]].argsort(descending=True)[: len(entry.keep)]
                assert entry.keep == sorted(best.tolist())


def test_of_equal_channels_the_earlier_are_kept(make_network: Make, groups: Groups) -> None:
    network = make_network()
    norm = network.get_submodule("stage2.block2.bn1")
    norm.weight.data.fill_(1)
    norm.weight.data[[5, 60]] = 2
    plan = plan_for(network, criterion="bn_scale")
    (keep,) = [e.keep for e in plan.groups if e.layer == "stage2.block2.conv1"]
    assert keep == [*range(36), 60]


@pytest.mark.parametrize("ratio", [0.2, 0.41, 0.8, 0.98, 0.999])
@pytest.mark.parametrize("criterion", ALL)
def test_global_scope_meets_the_total(criterion: str, ratio: float, make_network: Make) -> None:
    network = make_network()
    plan = plan_for(network, criterion=criterion, scope="global", ratio=ratio)
    kept = [len(entry.keep) for entry in plan.groups]
    total = 3 * 32 + 3 * 64 + 3 * 128
    assert sum(entry.width for entry in plan.groups) == total
    assert min(kept) >= 1
    assert sum(kept) == max(9, math.floor(total * (1 - ratio) + 1e-9))
    # Nothing that is cut scores above what is kept, but for the one that each group keeps anyway.
    free = [e.score_kept[0] for e in plan.groups if len(e.keep) > 1]
    cut = [e.score_cut[1] for e in plan.groups if e.score_cut]
    if free:
        assert max(cut) <= min(free)
    apply_plan(network, SHAPE, plan)
    assert network(torch.zeros(1, *SHAPE)).shape == (1, 10)


def test_global_scope_in_steps_meets_the_total_of_the_start(make_network: Make) -> None:
    network = make_network()
    original = layer_widths(network)
    for ratio, total in ((0.25, 504), (0.5, 336), (0.75, 168)):
        plan = plan_for(network, scope="global", ratio=ratio, original_widths=original)
        assert sum(len(entry.keep) for entry in plan.groups) == total
        apply_plan(network, SHAPE, plan)


def test_global_scope_cuts_the_weakest_layer_most(make_network: Make) -> None:
    network = make_network()
    # Scores are relative to a group's mean: one strong channel makes the others of its group weak.
    norm = network.get_submodule("stage2.block2.bn1")
    norm.weight.data.fill_(1e-3)
    norm.weight.data += 1e-5 * torch.arange(64)
    norm.weight.data[11] = 100
    plan = plan_for(network, criterion="bn_scale", scope="global", ratio=0.2)
    keep = {entry.layer: entry.keep for entry in plan.groups}
    assert keep["stage2.block2.conv1"] == [11]
    assert min(len(channels) for channels in keep.values()) == 1
    assert sum(len(channels) for channels in keep.values()) == 537


def test_nothing_to_cut_is_cut(make_network: Make) -> None:
    network = make_network()
    before = fingerprint(network)
    plan = plan_for(network, ratio=0.001)  # less than a channel, but rounded down
    assert [len(e.keep) for e in plan.groups] == [e.width - 1 for e in plan.groups]
    tiny = make_network(widths=[1, 1, 1])
    apply_plan(tiny, SHAPE, plan_for(tiny, ratio=0.9))
    assert set(layer_widths(tiny).values()) == {1}
    assert fingerprint(network) == before


def test_a_least_width_and_a_multiple(make_network: Make) -> None:
    network = make_network()
    for scope in ("local", "global"):
        plan = plan_for(network, scope=scope, ratio=0.9, min_width=7, round_to=4)
        kept = [len(entry.keep) for entry in plan.groups]
        assert min(kept) == 8
        assert all(width % 4 == 0 for width in kept)
    plan = plan_for(network, ratio=0.41, round_to=8)
    kept = {entry.layer: len(entry.keep) for entry in plan.groups}
    assert kept["in_c.0"] == 16
    assert kept["stage2.block1.conv1"] == 32
    assert kept["stage3.block1.conv1"] == 72
    # A layer that is narrower already stays as it is.
    narrow = make_network(widths=[3, 5, 9])
    plan = plan_for(narrow, ratio=0.5, min_width=6)
    assert {len(entry.keep) for entry in plan.groups} == {3, 5, 6}
