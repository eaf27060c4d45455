"""Limits instead of a ratio: what they say, and that networks cut to them meet them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from networks import parameters, plan_for
from torch import nn

from cpprune.evaluation.complexity import count_macs
from cpprune.models.resize import layer_widths
from cpprune.pruning.allocation import Limit, cost_model, parse_budget
from cpprune.pruning.groups import dependency_graph
from cpprune.pruning.plan import GroupPlan
from cpprune.pruning.prunable import prunable_groups
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

SHAPE = (1, 256, 44)
Make = Callable[..., nn.Module]


def cut_to(network: nn.Module, budget: str, **changes: Any) -> nn.Module:
    twin = copy.deepcopy(network)
    apply_plan(twin, SHAPE, plan_for(twin, SHAPE, ratio=None, budget=budget, **changes))
    return twin


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("params<=47028", [("params", 47_028)]),
        ("macs<=10e6", [("macs", 10_000_000)]),
        ("bytes<=128000@fp16", [("params", 64_000)]),
        ("bytes<=128001@fp32", [("params", 32_000)]),
        (" params <= 5e4 , bytes<=30000@int8", [("params", 50_000), ("params", 30_000)]),
    ],
)
def test_limits(text: str, limits: list[tuple[str, float]]) -> None:
    found = parse_budget(text)
    assert [(limit.quantity, limit.bound) for limit in found] == limits
    assert all(isinstance(limit, Limit) and limit.text in text for limit in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "47028",
        "params",
        "params<47028",
        "params>=3",
        "params<=",
        "params<=-5",
        "params<=0",
        "params<=many",
        "params<=1e999e",
        "params<=5@fp16",
        "bytes<=128000",
        "bytes<=128000@fp8",
        "flops<=3",
        "params<=3,,macs<=3",
    ],
)
def test_what_is_no_limit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"prune.budget: '.*' is no limit; write params<=47028"):
        parse_budget(text)


def test_the_cost_model_is_what_networks_cost(make_network: Make) -> None:
    network = make_network()
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        groups = prunable_groups(graph, network)
    model = cost_model(network, SHAPE, groups)
    rng = np.random.default_rng(0)
    for _ in range(3):
        widths = np.array([int(rng.integers(1, group.width + 1)) for group in groups])
        plan = plan_for(network, SHAPE, ratio=0.5)
        entries = zip(plan.groups, widths.tolist(), strict=True)
        cut = [GroupPlan(entry.layer, entry.width, list(range(width))) for entry, width in entries]
        twin = copy.deepcopy(network)
        apply_plan(twin, SHAPE, replace(plan, groups=cut))
        cost = model.cost(widths[None])
        assert cost["params"].tolist() == [parameters(twin)]
        assert cost["macs"][0] == pytest.approx(count_macs(twin, SHAPE), rel=1e-9)


def test_the_budget_of_the_recipe_is_used_up(make_network: Make) -> None:
    network = make_network()
    small = cut_to(network, "params<=47028")
    assert parameters(small) == 47_028
    assert layer_widths(small) == layer_widths(cut_to(network, "params<=47028"))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(
    ("budget", "limit", "quantity"),
    [
        ("params<=60000", 60_000, "params"),
        ("bytes<=128000@fp16", 64_000, "params"),
        ("macs<=10e6", 10_000_000, "macs"),
        ("macs<=20e6,params<=30000", 30_000, "params"),
    ],
)
def test_limits_are_met_and_nearly_used_up(
    budget: str, limit: int, quantity: str, scope: str, make_network: Make
) -> None:
    network = cut_to(make_network(), budget, scope=scope)
    costs = {"params": parameters(network), "macs": count_macs(network, SHAPE)}
    assert 0.99 * limit < costs[quantity] <= limit
    if budget.startswith("macs"):
        assert costs["macs"] <= 20_000_000
    network(torch.zeros(1, *SHAPE))


def test_a_multiple_holds_within_a_budget(make_network: Make) -> None:
    network = cut_to(make_network(), "params<=47028", round_to=8, min_width=16)
    assert parameters(network) <= 47_028
    widths = layer_widths(network).values()
    assert min(widths) >= 16
    assert all(width % 8 == 0 for width in widths)


def test_a_budget_that_is_met_cuts_nothing(make_network: Make) -> None:
    network = make_network()
    assert layer_widths(cut_to(network, "params<=131316")) == layer_widths(network)
    assert parameters(cut_to(network, "params<=131315")) <= 131_315


@pytest.mark.parametrize(
    ("budget", "changes", "message"),
    [
        ("params<=100", {}, r"prune.budget: params<=100 \(at least \d+ params\) cannot be met"),
        ("macs<=1000", {}, r"prune.budget: macs<=1000 \(at least [\d,]+ macs\) cannot be met"),
        ("params<=47028", {"min_width": 40}, r"cannot be met.*prune.min_width"),
    ],
)
def test_a_budget_that_cannot_be_met_is_named(
    budget: str, changes: dict[str, Any], message: str, make_network: Make
) -> None:
    with pytest.raises(UserError, match=message):
        cut_to(make_network(), budget, **changes)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_steps_lead_to_the_budget(scope: str, make_network: Make) -> None:
    network = make_network()
    original = layer_widths(network)
    counts = [parameters(network)]
    for fraction in (1 / 3, 2 / 3, 1.0):
        network = cut_to(
            network, "params<=47028", scope=scope, fraction=fraction, original_widths=original
        )
        counts.append(parameters(network))
    assert counts == sorted(set(counts), reverse=True)
    assert 0.99 * 47_028 < counts[-1] <= 47_028
    # And not all of it in the first step.
    assert counts[1] > 80_000
