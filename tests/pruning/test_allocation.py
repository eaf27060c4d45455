"""Limits instead of a ratio: what they say, and that networks cut to them meet them."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow
from networks import parameters, plan_for
from torch import nn

from cpprune.evaluation.complexity import count_macs
from cpprune.models.resize import layer_widths
from cpprune.pruning.allocation import widened
from cpprune.pruning.budget import Limit
from cpprune.pruning.costs import Widths
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

SHAPE = (1, 256, 44)
Make = Callable[..., nn.Module]


def cut_to(network: nn.Module, budget: str, **changes: Any) -> nn.Module:
    twin = copy.deepcopy(network)
    apply_plan(twin, SHAPE, plan_for(twin, SHAPE, ratio=None, budget=budget, **changes))
    return twin


def test_the_budget_of_the_recipe_is_used_up(make_network: Make) -> None:
    network = make_network()
    small = cut_to(network, "params<=47028")
    assert parameters(small) == 47_028
    assert layer_widths(small) == layer_widths(cut_to(network, "params<=47028"))


@pytest.mark.parametrize("scope", [slow("local"), "global"])
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


@pytest.mark.slow
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


def test_only_what_is_in_memory_at_the_peak_gets_narrower() -> None:
    start, end = np.array([40, 8, 20, 30]), np.array([10, 2, 5, 7])
    asked = []

    def peak(widths: Widths) -> float:
        asked.append(tuple(widths))
        return float(max(widths[:2].sum(), widths[2:].sum()))

    limit = Limit("ram<=50@int8", "ram@int8", 50)
    assert widened(limit, start, end, peak).tolist() == [40, 8, 20, 30]
    tight = Limit("ram<=45@int8", "ram@int8", 45)
    found = widened(tight, start, end, peak)
    assert peak(found) <= 45
    for group in np.flatnonzero(found < start):  # none could be as wide as it was
        wider = found.copy()
        wider[group] = start[group]
        assert peak(wider) > 45
    assert len(asked) < 20
