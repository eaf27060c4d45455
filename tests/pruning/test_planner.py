"""Which layers compete: isomorphic groups; and layers that a second criterion scores."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch_pruning as tp
from networks import plan_for, randomised
from torch import nn

import cpprune
from cpprune.models.resize import layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.plan import scored_otherwise
from cpprune.pruning.surgery import apply_plan

Make = Callable[..., nn.Module]
SHAPE = (1, 64, 32)


class Head(nn.Module):
    """Mean over frequency and time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return x.mean((2, 3))


def chain() -> nn.Sequential:
    """Layers of two kinds in turn: with batch normalisation, of 8 and 16 channels; without, of 10."""
    layers: list[nn.Module] = []
    inputs = 1
    for width, normalised in ((8, True), (10, False), (16, True), (10, False)):
        layers += [nn.Conv2d(inputs, width, 3), nn.BatchNorm2d(width) if normalised else nn.ReLU()]
        inputs = width
    network = nn.Sequential(*layers, nn.Conv2d(inputs, 10, 1), Head())
    return randomised(network)  # type: ignore[return-value]


def kept(network: nn.Module, **settings: object) -> dict[str, int]:
    plan = plan_for(network, SHAPE, **settings)
    return {group.layer: len(group.keep) for group in plan.groups}


def test_isomorphic_layers_compete_and_others_do_not() -> None:
    network = chain()
    with torch.no_grad():
        network[0].weight.mul_(1e-3)  # the least important by far, of its kind and of all
        network[1].weight.mul_(1e-3)
        network[1].bias.mul_(1e-3)
        network[2].weight.mul_(1e-3)
        network[6].weight.mul_(1e3)
    settings = {"ratio": 0.25, "normaliser": "none"}
    assert kept(network, scope="global", **settings)["0"] < 3
    found = kept(network, scope="isomorphic", **settings)
    # Of each kind a quarter goes, from 24 and from 20 channels.
    assert found["0"] + found["4"] == 18
    assert found["2"] + found["6"] == 15
    assert found["0"] == 2
    assert found["2"] == 5


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_isomorphic_widths_are_those_of_torch_pruning(make_network: Make, ratio: float) -> None:
    network = make_network(widths=[12, 16, 24])
    theirs = copy.deepcopy(network)
    pruner = tp.pruner.BasePruner(
        theirs,
        torch.zeros(1, *SHAPE),
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        global_pruning=True,
        isomorphic=True,
        ignored_layers=[theirs.classifier],
    )
    pruner.step()
    apply_plan(network, SHAPE, plan_for(network, SHAPE, ratio=ratio, scope="isomorphic"))
    assert layer_widths(network) == layer_widths(theirs)


def test_a_budget_is_met_by_isomorphic_layers(make_network: Make) -> None:
    network = make_network(widths=[12, 16, 24])
    whole = sum(p.numel() for p in network.parameters())
    budget = f"params<={whole // 2}"
    plan = plan_for(network, SHAPE, ratio=None, budget=budget, scope="isomorphic")
    apply_plan(network, SHAPE, plan)
    assert 0.97 * whole / 2 < sum(p.numel() for p in network.parameters()) <= whole // 2


@pytest.mark.parametrize("scope", ["local", "isomorphic"])
def test_a_second_criterion_scores_what_the_first_cannot(scope: str) -> None:
    network = chain()
    settings = {"ratio": 0.5, "scope": scope, "criterion": "bn_scale"}
    plan = plan_for(network, SHAPE, **settings, fallback_criterion="magnitude")
    groups = {group.layer: group for group in plan.groups}
    assert {layer: group.criterion for layer, group in groups.items()} == {
        **dict.fromkeys(("0", "4")),
        **dict.fromkeys(("2", "6"), "magnitude"),
    }
    assert scored_otherwise(plan) == (
        "scored by magnitude, since bn_scale finds nothing there: 6, 2"
    )
    only = plan_for(network, SHAPE, ratio=0.5, scope=scope, criterion="magnitude")
    assert scored_otherwise(only) == ""
    by_magnitude = {group.layer: group for group in only.groups}
    for layer, group in groups.items():
        width = len(group.keep)
        if group.criterion:
            assert group.keep == by_magnitude[layer].keep
        else:
            scale = network[int(layer) + 1].weight.detach().double().abs()
            assert group.keep == sorted(scale.argsort(descending=True)[:width].tolist())


def test_without_a_second_criterion_the_network_is_refused() -> None:
    with pytest.raises(
        cpprune.UserError, match=r"nothing to score in [26],.*prune.fallback_criterion"
    ):
        plan_for(chain(), SHAPE, ratio=0.5, criterion="bn_scale")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scope": "global"}, r"cannot be ranked together, as prune.scope=global would"),
        ({"criterion": "taylor"}, "with prune.criterion=taylor: taylor scores every layer"),
        ({"fallback_criterion": "hessian"}, "hessian scores every layer, and by the loss"),
    ],
)
def test_a_second_criterion_that_cannot_be(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneConfig(**{"criterion": "bn_scale", "fallback_criterion": "magnitude", **settings})  # type: ignore[arg-type]
