"""Plans: what is kept, how much is left, and what becomes of the network."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cpprune
from cpprune.distributed import fingerprint, structure
from cpprune.models.registry import rebuild_model
from cpprune.models.resize import layer_widths
from cpprune.pruning.plan import make_plan, preview, read_plan, write_plan
from cpprune.pruning.schedule import PruneConfig, events, plan_arguments
from cpprune.pruning.surgery import apply_plan
from cpprune.pruning.sync import prune_on_all_ranks
from shards.errors import InputError

SHAPE = (1, 64, 32)
ALL = ["magnitude", "bn_scale", "group_norm"]
Groups = list[tuple[list[str], list[str], list[str]]]
Make = Callable[..., nn.Module]


def plan_for(network: nn.Module, **changes: Any) -> dict[str, Any]:
    settings = {
        "criterion": "magnitude",
        "scope": "local",
        "ratio": 0.41,
        "original_widths": layer_widths(network),
    }
    return make_plan(network, SHAPE, **(settings | changes))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


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
        plan = make_plan(network, SHAPE, original_widths=original, **plan_arguments(config, event))
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
@pytest.mark.parametrize("scope", ["local", "global"])
def test_what_is_kept_is_kept_exactly(
    criterion: str, scope: str, make_network: Make, groups: Groups
) -> None:
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    plan = plan_for(network, criterion=criterion, scope=scope)
    apply_plan(network, SHAPE, plan)
    assert len(plan["groups"]) == len(groups)
    rows: dict[str, list[int]] = {}
    columns: dict[str, list[int]] = {}
    for entry in plan["groups"]:
        ((convs, norms, readers),) = [group for group in groups if entry["layer"] in group[0]]
        assert entry["keep"] == sorted(set(entry["keep"]))
        assert len(entry["keep"]) < entry["width"] or scope == "global"
        rows |= dict.fromkeys(convs + norms, entry["keep"])
        columns |= dict.fromkeys(readers, entry["keep"])
    expected = {}
    for name, tensor in before.items():
        layer = name.rpartition(".")[0]
        if tensor.ndim and layer in rows:
            tensor = tensor[rows[layer]]
        if tensor.ndim > 1 and layer in columns:
            tensor = tensor[:, columns[layer]]
        expected[name] = tensor
    after = network.state_dict()
    assert after.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor), name
    assert network(torch.zeros(2, *SHAPE)).shape == (2, 10)


@pytest.mark.parametrize("criterion", ALL)
def test_the_highest_scores_are_kept(criterion: str, make_network: Make, groups: Groups) -> None:
    network = make_network()
    gammas = {}
    if criterion == "bn_scale":
        # The scores of this one are easily read off.
        for _, norms, _ in groups:
            weights = [network.get_submodule(name).weight for name in norms]
            gammas[norms[0]] = torch.stack(weights).double().mean(0)
    for entry in plan_for(network, criterion=criterion)["groups"]:
        assert entry["score_kept"][0] > entry["score_cut"][1]
        assert entry["score_kept"][0] <= entry["score_kept"][1]
        assert entry["score_cut"][0] <= entry["score_cut"][1]
        for convs, norms, _ in groups:
            if entry["layer"] in convs and gammas:
                best = gammas[norms[0]].argsort(descending=True)[: len(entry["keep"])]
                assert entry["keep"] == sorted(best.tolist())


@pytest.mark.parametrize("criterion", ALL)
def test_cutting_silent_channels_changes_no_output(
    criterion: str, make_network: Make, groups: Groups
) -> None:
    network = make_network().eval()
    generator = torch.Generator().manual_seed(3)
    silent = {}
    for convs, norms, _ in groups:
        width = network.get_submodule(convs[0]).out_channels
        left = math.floor(width * 0.59)
        cut = torch.randperm(width, generator=generator)[left:]
        silent[convs[0]] = sorted(set(range(width)) - set(cut.tolist()))
        for name in norms:
            network.get_submodule(name).weight.data[cut] = 0
            network.get_submodule(name).bias.data[cut] = 0
        for name in convs:
            network.get_submodule(name).weight.data[cut] = 0
    x = torch.randn(3, *SHAPE, generator=generator)
    expected = network(x)
    assert expected.std() > 0.1
    plan = plan_for(network, criterion=criterion)
    for entry in plan["groups"]:
        ((convs, _, _),) = [group for group in groups if entry["layer"] in group[0]]
        assert entry["keep"] == silent[convs[0]]
    apply_plan(network, SHAPE, plan)
    assert parameters(network) == 44_784
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
    # While a channel that speaks is missed.
    other = plan_for(network, ratio=0.1)
    apply_plan(network, SHAPE, other)
    assert (network(x) - expected).abs().max() > 1e-2


def silenced(network: nn.Module, plan: dict[str, Any]) -> nn.Module:
    """The network with its widths as they are, and nothing coming out of what the plan cuts."""

    layers = layer_widths(network)

    def group_of(layer: str) -> str:
        stage = layer.split(".")[0]
        if layer.endswith("conv1"):
            return layer
        if stage in ("in_c", "stage1"):
            return "stage1"
        if f"{stage}.block1.shortcut.conv" in layers:
            return stage
        return group_of({"stage2": "stage1", "stage3": "stage2"}[stage])  # added, so as wide

    keep = {group_of(entry["layer"]): entry["keep"] for entry in plan["groups"]}
    twin = copy.deepcopy(network)
    for layer in layers:
        name = "in_c.1" if layer == "in_c.0" else layer.replace("conv", "bn")
        norm = twin.get_submodule(name)
        cut = sorted(set(range(len(norm.weight))) - set(keep[group_of(layer)]))
        norm.weight.data[cut] = 0
        norm.bias.data[cut] = 0
    return twin


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(
    "config",
    [
        {"base_channels": 8, "channels_multiplier": 1},
        {"rho": 8, "blocks": [2, 1, 1], "widths": [8, 12, 16]},
        {"rho": 2, "blocks": [1, 1, 1], "widths": [20, 10, 5]},
    ],
)
def test_other_networks_are_pruned_too(
    config: dict[str, Any], scope: str, make_network: Make
) -> None:
    network = make_network(**config).eval()
    before = parameters(network)
    plan = plan_for(network, scope=scope, ratio=0.5)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    expected = silenced(network, plan)(x)
    apply_plan(network, SHAPE, plan)
    assert parameters(network) < 0.5 * before
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
    again = rebuild_model("cp_resnet", 10, config, network.state_dict(), SHAPE)
    assert torch.equal(again.eval()(x), network(x))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ratio", [0.41, 0.5])
@pytest.mark.parametrize(
    "config",
    [
        {"rho": 8, "blocks": [2, 1, 1], "groups": [1, 2, 1], "widths": [32, 64, 92]},
        {"widths": [8, 16, 24], "groups": [2, 4, 2]},
    ],
)
def test_grouped_convolutions_are_cut_right_or_refused(
    config: dict[str, Any], ratio: float, scope: str, make_network: Make
) -> None:
    network = make_network(**config).eval()
    before = fingerprint(network)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    try:
        plan = plan_for(network, scope=scope, ratio=ratio)
        expected = silenced(network, plan)(x)
        apply_plan(network, SHAPE, plan)
    except InputError as refusal:
        message = str(refusal)
    else:
        message = None
    if message is not None:
        assert "groups" in message
        assert fingerprint(network) == before
        return
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
    again = rebuild_model("cp_resnet", 10, config, network.state_dict(), SHAPE)
    assert torch.equal(again.eval()(x), network(x))


@pytest.mark.parametrize("ratio", [0.2, 0.41, 0.8, 0.98, 0.999])
@pytest.mark.parametrize("criterion", ALL)
def test_global_scope_meets_the_total(criterion: str, ratio: float, make_network: Make) -> None:
    network = make_network()
    plan = plan_for(network, criterion=criterion, scope="global", ratio=ratio)
    kept = [len(entry["keep"]) for entry in plan["groups"]]
    total = 3 * 32 + 3 * 64 + 3 * 128
    assert sum(entry["width"] for entry in plan["groups"]) == total
    assert min(kept) >= 1
    assert sum(kept) == max(9, math.floor(total * (1 - ratio) + 1e-9))
    # Nothing that is cut scores above what is kept, but for the one that each group keeps anyway.
    free = [e["score_kept"][0] for e in plan["groups"] if len(e["keep"]) > 1]
    cut = [e["score_cut"][1] for e in plan["groups"] if e["score_cut"]]
    if free:
        assert max(cut) <= min(free)
    apply_plan(network, SHAPE, plan)
    assert network(torch.zeros(1, *SHAPE)).shape == (1, 10)


def test_global_scope_in_steps_meets_the_total_of_the_start(make_network: Make) -> None:
    network = make_network()
    original = layer_widths(network)
    for ratio, total in ((0.25, 504), (0.5, 336), (0.75, 168)):
        plan = plan_for(network, scope="global", ratio=ratio, original_widths=original)
        assert sum(len(entry["keep"]) for entry in plan["groups"]) == total
        apply_plan(network, SHAPE, plan)


def test_global_scope_cuts_the_weakest_layer_most(make_network: Make) -> None:
    network = make_network()
    # Scores are relative to a group's mean: one strong channel makes the others of its group weak.
    norm = network.get_submodule("stage2.block2.bn1")
    norm.weight.data.fill_(1e-3)
    norm.weight.data += 1e-5 * torch.arange(64)
    norm.weight.data[11] = 100
    plan = plan_for(network, criterion="bn_scale", scope="global", ratio=0.2)
    keep = {entry["layer"]: entry["keep"] for entry in plan["groups"]}
    assert keep["stage2.block2.conv1"] == [11]
    assert min(len(channels) for channels in keep.values()) == 1
    assert sum(len(channels) for channels in keep.values()) == 537


def test_a_plan_is_json_and_the_same_twice(make_network: Make) -> None:
    network = make_network()
    for scope in ("local", "global"):
        plan = plan_for(network, scope=scope)
        assert json.loads(json.dumps(plan)) == plan
        assert plan_for(network, scope=scope) == plan
        assert plan_for(copy.deepcopy(network), scope=scope) == plan
        assert plan["criterion"] == "magnitude"
        assert plan["scope"] == scope
        assert plan["structure"] == structure(network)
    twins = [copy.deepcopy(network) for _ in range(2)]
    apply_plan(twins[0], SHAPE, plan)
    apply_plan(twins[1], SHAPE, json.loads(json.dumps(plan)))
    assert fingerprint(twins[0]) == fingerprint(twins[1]) != fingerprint(network)


def test_a_plan_is_read_back_for_its_network_alone(make_network: Make, tmp_path: Path) -> None:
    network = make_network(base_channels=4)
    plan = plan_for(network)
    file = tmp_path / "plan.json"
    write_plan(file, plan)
    assert read_plan(file, network, SHAPE) == plan
    # Other weights of the same structure may have other channels worth keeping.
    for other in (make_network(seed=1, base_channels=4), make_network(base_channels=5)):
        with pytest.raises(InputError, match=r"plan\.json: was made for another network"):
            read_plan(file, other, SHAPE)
    apply_plan(network, SHAPE, plan)
    with pytest.raises(InputError, match=r"plan\.json: was made for another network"):
        read_plan(file, network, SHAPE)
    with pytest.raises(InputError, match=r"nothing/plan\.json: cannot be written"):
        write_plan(tmp_path / "nothing" / "plan.json", plan)
    with pytest.raises(InputError, match=r"nothing\.json: cannot be read"):
        read_plan(tmp_path / "nothing.json", network, SHAPE)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"groups": [3]}', '{"groups": []}'])
def test_what_is_no_plan_is_named(text: str, make_network: Make, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"plan\.json: is no pruning plan"):
        read_plan(file, make_network(widths=[2, 3, 4]), SHAPE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("keep", []),
        ("keep", [1, 0]),
        ("keep", [0, 0]),
        ("keep", [0, 99]),
        ("keep", [-1, 0]),
        ("keep", ["0"]),
        ("keep", [0.5]),
        ("keep", 1),
        ("keep", None),
        ("layer", "stage4.block1.conv1"),
        ("layer", "feed_forward.0"),
        ("layer", 3),
        ("width", 99),
        ("width", "8"),
    ],
)
def test_an_edited_plan_is_checked(
    key: str, value: Any, make_network: Make, tmp_path: Path
) -> None:
    network = make_network(base_channels=4)
    before = fingerprint(network)
    plan = plan_for(network)
    plan["groups"][1][key] = value
    write_plan(tmp_path / "plan.json", plan)
    with pytest.raises(InputError, match=r"plan\.json: "):
        apply_plan(network, SHAPE, read_plan(tmp_path / "plan.json", network, SHAPE))
    assert fingerprint(network) == before


def test_of_equal_channels_the_earlier_are_kept(make_network: Make, groups: Groups) -> None:
    network = make_network()
    norm = network.get_submodule("stage2.block2.bn1")
    norm.weight.data.fill_(1)
    norm.weight.data[[5, 60]] = 2
    plan = plan_for(network, criterion="bn_scale")
    (keep,) = [e["keep"] for e in plan["groups"] if e["layer"] == "stage2.block2.conv1"]
    assert keep == [*range(36), 60]


def test_making_a_plan_changes_nothing(make_network: Make) -> None:
    network = make_network()
    network.train()
    network.stage2.eval()
    network.stage1.requires_grad_(False)
    print_before = fingerprint(network)
    modes = [module.training for module in network.modules()]
    flags = [p.requires_grad for p in network.parameters()]
    ids = [id(p) for p in network.parameters()]
    plan = plan_for(network)
    figures = preview(network, SHAPE, [plan])
    assert fingerprint(network) == print_before
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == flags
    assert [id(p) for p in network.parameters()] == ids
    assert figures["before"]["parameters"] == 131_316
    assert figures["after"]["parameters"] == 44_784
    assert figures["after"]["macs"] < figures["before"]["macs"]
    for name, byte in (("fp32", 4), ("fp16", 2), ("int8", 1)):
        assert figures["after"]["bytes"][name] == 44_784 * byte
    layers = {layer["name"]: (layer["before"], layer["after"]) for layer in figures["layers"]}
    assert layers["in_c.0"] == (32, 18)
    assert layers["stage2.block1.shortcut.conv"] == (64, 37)
    assert layers["stage3.block2.conv1"] == (128, 75)
    assert set(layers) == set(layer_widths(network))
    assert json.loads(json.dumps(figures)) == figures


def test_preview_of_several_steps(make_network: Make) -> None:
    network = make_network()
    twin = copy.deepcopy(network)
    plans = []
    for part in (1 / 3, 2 / 3, 1.0):
        plans.append(plan_for(twin, part=part, original_widths=layer_widths(network)))
        apply_plan(twin, SHAPE, plans[-1])
    assert preview(network, SHAPE, plans)["after"]["parameters"] == 44_784
    assert parameters(network) == 131_316


def test_a_plan_is_applied_once(make_network: Make) -> None:
    network = make_network()
    plan = plan_for(network)
    apply_plan(network, SHAPE, plan)
    after = fingerprint(network)
    with pytest.raises(InputError, match=r"another structure \(or is applied already\)"):
        apply_plan(network, SHAPE, plan)
    assert fingerprint(network) == after
    for config in ({"widths": [32, 64, 127]}, {"channels_multiplier": 1}, {"rho": 6}):
        other = make_network(**config)
        with pytest.raises(InputError, match="another structure"):
            apply_plan(other, SHAPE, plan)
    assert parameters(other) != 44_784


def test_a_plan_fits_any_weights_of_its_structure(make_network: Make) -> None:
    plan = plan_for(make_network(seed=1))
    other = make_network(seed=2)
    apply_plan(other, SHAPE, plan)
    assert parameters(other) == 44_784


@pytest.mark.parametrize("frozen", ["nothing", "stage1", "everything"])
def test_modes_and_what_is_trainable_survive(frozen: str, make_network: Make) -> None:
    network = make_network()
    network.train()
    network.stage3.eval()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(frozen == "nothing" or not name.startswith(frozen))
        if frozen == "everything":
            parameter.requires_grad_(False)
    modes = {name: module.training for name, module in network.named_modules()}
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    apply_plan(network, SHAPE, plan_for(network))
    assert parameters(network) == 44_784
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert {name: p.requires_grad for name, p in network.named_parameters()} == flags
    assert all(isinstance(p, nn.Parameter) for p in network.parameters())
    assert all(p.grad is None for p in network.parameters())
    if frozen == "nothing":  # it trains on
        network(torch.randn(4, *SHAPE)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_nothing_to_cut_is_cut(make_network: Make) -> None:
    network = make_network()
    before = fingerprint(network)
    plan = plan_for(network, ratio=0.001)  # less than a channel, but rounded down
    assert [len(e["keep"]) for e in plan["groups"]] == [e["width"] - 1 for e in plan["groups"]]
    tiny = make_network(widths=[1, 1, 1])
    apply_plan(tiny, SHAPE, plan_for(tiny, ratio=0.9))
    assert set(layer_widths(tiny).values()) == {1}
    assert fingerprint(network) == before


def test_a_least_width_and_a_multiple(make_network: Make) -> None:
    network = make_network()
    for scope in ("local", "global"):
        plan = plan_for(network, scope=scope, ratio=0.9, min_width=7, round_to=4)
        kept = [len(entry["keep"]) for entry in plan["groups"]]
        assert min(kept) == 8
        assert all(width % 4 == 0 for width in kept)
    plan = plan_for(network, ratio=0.41, round_to=8)
    kept = {entry["layer"]: len(entry["keep"]) for entry in plan["groups"]}
    assert kept["in_c.0"] == 16
    assert kept["stage2.block1.conv1"] == 32
    assert kept["stage3.block1.conv1"] == 72
    # A layer that is narrower already stays as it is.
    narrow = make_network(widths=[3, 5, 9])
    plan = plan_for(narrow, ratio=0.5, min_width=6)
    assert {len(entry["keep"]) for entry in plan["groups"]} == {3, 5, 6}


def test_pruning_with_one_process(make_network: Make) -> None:
    network = make_network()
    expected = copy.deepcopy(network)
    apply_plan(expected, SHAPE, plan_for(expected))
    device = torch.device("cpu")
    cut = prune_on_all_ranks(network, SHAPE, lambda: plan_for(network), {}, device)
    assert parameters(network) == 44_784
    assert len(cut.plan["groups"]) == 9
    assert cut.fingerprint == fingerprint(network) == fingerprint(expected)

    def refuse() -> dict[str, Any]:
        raise InputError("prune.criterion=bn_scale: no")

    with pytest.raises(InputError, match=r"^prune.criterion=bn_scale: no$"):
        prune_on_all_ranks(network, SHAPE, refuse, {}, device)
    assert fingerprint(network) == cut.fingerprint


def test_moments_are_cut_with_their_parameters(make_network: Make) -> None:
    # Moments that are functions of the weights are, after the cut, those functions of what is left.
    network = make_network()
    network.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    moments = {f"{name}/exp_avg": 3 * p for name, p in before.items()}
    moments |= {f"{name}/exp_avg_sq": p.square() for name, p in before.items()}
    moments |= {f"{name}/step": torch.tensor(12.0) for name in before}
    cut = prune_on_all_ranks(
        network, SHAPE, lambda: plan_for(network), moments, torch.device("cpu")
    )
    assert parameters(network) == 44_784
    assert cut.moments.keys() == moments.keys()
    for name, parameter in network.named_parameters():
        assert torch.equal(cut.moments[f"{name}/exp_avg"], 3 * parameter)
        assert torch.equal(cut.moments[f"{name}/exp_avg_sq"], parameter.square())
        assert cut.moments[f"{name}/step"] == 12
