"""Groups and scores against sums over the tensors, made here in float64."""

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from networks import SHAPE, plan_for
from torch import Tensor, nn

import cpprune
from cpprune.pruning.criteria import CRITERIA
from cpprune.pruning.groups import dependency_graph
from cpprune.pruning.importance import saliency, score
from cpprune.pruning.prunable import prunable_groups
from shards.errors import UserError

Groups = list[tuple[list[str], list[str], list[str]]]


def expected_score(
    criterion: str, state: dict[str, Tensor], group: tuple[list[str], list[str], list[str]]
) -> Tensor:
    """Channel by channel; relative to the group's mean, or for group_norm to its largest.

    (So a mean over the tensors of a group is as good as a sum.)
    """
    convs, norms, readers = group
    width = len(state[f"{norms[0]}.weight"])
    values = torch.zeros(width, dtype=torch.float64)
    for channel in range(width):
        gamma = [state[f"{name}.weight"][channel].double() for name in norms]
        rows = [state[f"{name}.weight"][channel].double() for name in convs]
        columns = [state[f"{name}.weight"][:, channel].double() for name in readers]
        tensors = gamma if criterion == "bn_scale" else gamma + rows + columns
        if criterion in ("group_norm", "magnitude_l2"):
            norms_of_tensors = [float(t.square().sum()) for t in tensors]
        else:
            norms_of_tensors = [float(t.abs().sum()) for t in tensors]
        values[channel] = sum(norms_of_tensors)
    return values / (values.max() if criterion == "group_norm" else values.mean())


@pytest.mark.parametrize("criterion", ["magnitude", "magnitude_l2", "bn_scale", "group_norm"])
def test_scores_are_sums_over_the_group(
    criterion: str, make_network: Callable[..., nn.Module], groups: Groups
) -> None:
    network = make_network(base_channels=8)
    state = network.state_dict()
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        found = prunable_groups(graph, network)
        scores = score(criterion, found)
    assert len(found) == len(groups)
    for group, actual in zip(found, scores, strict=True):
        (own,) = [g for g in groups if group.layer in g[0]]
        assert group.width == len(state[f"{group.layer}.weight"])
        assert actual.dtype == torch.float64
        expected = expected_score(criterion, state, own)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_grouped_convolutions_lose_the_same_place_of_every_group(
    make_network: Callable[..., nn.Module],
) -> None:
    network = make_network(widths=[9, 12, 16], groups=[1, 3, 1])
    made = plan_for(network, criterion="bn_scale", ratio=0.5)
    (entry,) = [e for e in made.groups if e.layer == "stage2.block2.conv1"]
    gamma = network.get_submodule("stage2.block2.bn1").weight.detach().double()
    # Channels 0 to 3, 4 to 7 and 8 to 11 are read by a group each.
    place = torch.stack([gamma[[u, u + 4, u + 8]].mean() for u in range(4)])
    best = sorted(place.argsort(descending=True)[:2].tolist())
    assert entry.keep == [u + first for first in (0, 4, 8) for u in best]
    assert entry.score_kept[0] == pytest.approx(float(place[best].min() / gamma.mean()))


def test_random_scores_are_the_same_everywhere(make_network: Callable[..., nn.Module]) -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = make_network(seed=seed, base_channels=8)
        with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
            found.append(score("random", prunable_groups(graph, network)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    widest = [scores.argsort().tolist() for scores in found[0] if len(scores) == 32]
    assert len({tuple(order) for order in widest}) == len(widest)


def test_every_group_is_found_once_and_the_classifier_never(
    make_network: Callable[..., nn.Module], groups: Groups
) -> None:
    network = make_network()
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        layers = [group.layer for group in prunable_groups(graph, network)]
    assert "feed_forward.0" not in layers
    for convs, _, _ in groups:
        assert len(set(convs) & set(layers)) == 1
    assert len(layers) == len(groups)


@pytest.mark.parametrize("fails", [False, True])
def test_tracing_leaves_no_trace(fails: bool, make_network: Callable[..., nn.Module]) -> None:
    network = make_network(base_channels=4)
    network.train()
    network.stage2.eval()
    for parameter in network.stage1.parameters():
        parameter.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    trainable = [p.requires_grad for p in network.parameters()]
    before = copy.deepcopy(network.state_dict())
    try:
        with dependency_graph(network, torch.zeros(1, *SHAPE)):
            assert not network.training
            if fails:
                raise KeyError("within")
    except KeyError:
        assert fails
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == trainable
    assert all(p.grad is None for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    with torch.no_grad(), dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        assert len(prunable_groups(graph, network)) == 9


def test_an_untrained_network_has_no_bn_scales(make_network: Callable[..., nn.Module]) -> None:
    untrained = cpprune.build_model("cp_resnet", base_channels=8)
    message = "prune.criterion=bn_scale: .*same score.*untrained.*train first|magnitude"
    with pytest.raises(UserError, match=message):
        plan_for(untrained, criterion="bn_scale")
    plan_for(untrained, criterion="magnitude")
    plan_for(untrained, criterion="group_norm")
    # One tied group is enough, and it is named.
    network = make_network(base_channels=8)
    nn.init.constant_(network.get_submodule("stage2.block1.bn1").weight, 0.7)
    with pytest.raises(UserError, match=r"every channel of stage2\.block1\.conv1 the same"):
        plan_for(network, criterion="bn_scale")


def test_one_channel_is_not_a_tie(make_network: Callable[..., nn.Module]) -> None:
    plan_for(make_network(widths=[1, 2, 3]), criterion="bn_scale")


@pytest.mark.parametrize("criterion", ["magnitude", "bn_scale", "group_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(
    criterion: str, value: float, make_network: Callable[..., nn.Module]
) -> None:
    network = make_network(base_channels=8)
    network.get_submodule("stage3.block2.bn1").weight.data[2] = value
    message = rf"prune.criterion={criterion}: .*not finite in stage3\.block2\.conv1"
    with pytest.raises(UserError, match=message):
        plan_for(network, criterion=criterion)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "prod"])
@pytest.mark.parametrize("normaliser", ["mean", "max", "sum", "none"])
def test_reduction_and_normaliser(
    make_network: Callable[..., nn.Module], groups: Groups, reduction: str, normaliser: str
) -> None:
    network = make_network(widths=[4, 5, 6])
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        found = prunable_groups(graph, network)
        scores = score("bn_scale", found, reduction=reduction, normaliser=normaliser)
    for group, values in zip(found, scores, strict=True):
        ((_, norms, _),) = [g for g in groups if group.layer in g[0]]
        scales = torch.stack(
            [network.get_submodule(name).weight.detach().double().abs() for name in norms]
        )
        raw = getattr(scales, {"max": "amax"}.get(reduction, reduction))(0)
        divisor = {"none": 1.0, "mean": raw.mean(), "max": raw.max(), "sum": raw.sum()}[normaliser]
        torch.testing.assert_close(values, raw / divisor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_is_described_and_ranks_channels(
    criterion: str, make_network: Callable[..., nn.Module]
) -> None:
    rule = CRITERIA[criterion]
    assert rule.name == criterion
    assert rule.source
    assert rule.function.__doc__
    network = make_network(widths=[4, 5, 6])
    measured = None
    if rule.needs_data:
        clips = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
        measured = saliency(criterion, network, clips, torch.tensor([0, 1]), total=2)
    plan = plan_for(network, criterion=criterion, ratio=0.5, saliency=measured)
    assert plan.criterion == criterion
    assert {len(group.keep) for group in plan.groups} == {2, 3}


def test_criteria_are_known_without_torch() -> None:
    code = "import sys; from cpprune.pruning.criteria import CRITERIA; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_fpgm_where_a_grouped_convolution_reads_the_channels(groups):
    """A channel by its distances from others, in the layer that makes it and the one that reads it."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.Conv2d(8, 12, 3, groups=groups),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).append(nn.Linear(12, 3))
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        (group,) = [g for g in prunable_groups(graph, network) if g.layer == "0"]
        (found,) = score("fpgm", [group], reduction="sum", normaliser="none")
    makes, reads = network[0].weight.detach().double(), network[1].weight.detach().double()
    outer, inner = 12 // groups, 8 // groups
    expected = torch.zeros(8, dtype=torch.float64)
    columns = [
        reads[c // inner * outer : (c // inner + 1) * outer, c % inner].flatten() for c in range(8)
    ]
    for vectors in (list(makes.flatten(1)), columns):
        for c in range(8):
            distances = [(vectors[c].square() - other.square()).norm() for other in vectors]
            expected[c] += torch.stack(distances).sum()
    expected = expected.view(groups, -1).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
