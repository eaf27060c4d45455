"""What becomes of a network, and of the optimizer's moments, when a plan is applied."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import SHAPE, TEACHER, parameters, plan_for
from torch import nn

from cpprune.models.fingerprint import fingerprint
from cpprune.models.registry import rebuild_model
from cpprune.models.resize import layer_widths
from cpprune.pruning.pruner import prune_on_all_ranks
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

ALL = ["magnitude", "bn_scale", "group_norm"]
Groups = list[tuple[list[str], list[str], list[str]]]
Make = Callable[..., nn.Module]


@pytest.mark.parametrize("criterion", ALL)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_what_is_kept_is_kept_exactly(
    criterion: str, scope: str, make_network: Make, groups: Groups
) -> None:
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    plan = plan_for(network, criterion=criterion, scope=scope)
    apply_plan(network, SHAPE, plan)
    assert len(plan.groups) == len(groups)
    rows: dict[str, list[int]] = {}
    columns: dict[str, list[int]] = {}
    for entry in plan.groups:
        ((convs, norms, readers),) = [group for group in groups if entry.layer in group[0]]
        assert entry.keep == sorted(set(entry.keep))
        assert len(entry.keep) < entry.width or scope == "global"
        rows |= dict.fromkeys(convs + norms, entry.keep)
        columns |= dict.fromkeys(readers, entry.keep)
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
    for entry in plan.groups:
        ((convs, _, _),) = [group for group in groups if entry.layer in group[0]]
        assert entry.keep == silent[convs[0]]
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

    keep = {group_of(entry.layer): entry.keep for entry in plan.groups}
    twin = copy.deepcopy(network)
    for layer in layers:
        name = "in_c.1" if layer == "in_c.0" else layer.replace("conv", "bn")
        norm = twin.get_submodule(name)
        cut = sorted(set(range(len(norm.weight))) - set(keep[group_of(layer)]))
        norm.weight.data[cut] = 0
        norm.bias.data[cut] = 0
    return twin


def rebuilt(network: nn.Module, config: dict[str, Any]) -> nn.Module:
    """The same network, built from the widths that the cut has left it."""
    again = rebuild_model("cp_resnet", 10, config, network.state_dict(), SHAPE)
    return again.eval()


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
    assert torch.equal(rebuilt(network, config)(x), network(x))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ratio", [0.41, 0.5])
@pytest.mark.parametrize(
    "config",
    [
        TEACHER,
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
    except UserError as refusal:
        message = str(refusal)
    else:
        message = None
    if message is not None:
        assert "groups" in message
        assert fingerprint(network) == before
        return
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
    assert torch.equal(rebuilt(network, config)(x), network(x))


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


def test_pruning_with_one_process(make_network: Make) -> None:
    network = make_network()
    expected = copy.deepcopy(network)
    apply_plan(expected, SHAPE, plan_for(expected))
    device = torch.device("cpu")
    cut = prune_on_all_ranks(network, SHAPE, lambda: plan_for(network), {}, device)
    assert parameters(network) == 44_784
    assert len(cut.plan.groups) == 9
    assert cut.fingerprint == fingerprint(network) == fingerprint(expected)

    def refuse() -> dict[str, Any]:
        raise UserError("prune.criterion=bn_scale: no")

    with pytest.raises(UserError, match=r"^prune.criterion=bn_scale: no$"):
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
    assert cut.optimizer_state.keys() == moments.keys()
    for name, parameter in network.named_parameters():
        assert torch.equal(cut.optimizer_state[f"{name}/exp_avg"], 3 * parameter)
        assert torch.equal(cut.optimizer_state[f"{name}/exp_avg_sq"], parameter.square())
        assert cut.optimizer_state[f"{name}/step"] == 12
