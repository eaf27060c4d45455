"""The cost model foresees what networks cost at other widths, and budgets of operations are met."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import Fickle, Hidden, parameters, plan_for
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cpprune
from cpprune.evaluation.complexity import count_macs
from cpprune.pruning.costs import Products, cost_model
from cpprune.pruning.groups import dependency_graph
from cpprune.pruning.plan import GroupPlan
from cpprune.pruning.prunable import prunable_groups
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

Make = Callable[..., nn.Module]


def flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (cpprune.build_model("cp_resnet"), (1, 256, 44)),
        (cpprune.build_model("cp_mobile"), (1, 64, 32)),
        (Hidden(10), (1, 64, 32)),
    ],
    ids=["cp_resnet", "cp_mobile", "hidden"],
)
def test_the_cost_model_is_what_networks_cost(network: nn.Module, shape: tuple[int, ...]) -> None:
    with dependency_graph(network, torch.zeros(1, *shape)) as graph:
        groups = prunable_groups(graph, network)
    model = cost_model(network, shape, groups, operations=True)
    assert "operations" not in cost_model(network, shape, groups).cost(model.widths[None])
    rng = np.random.default_rng(0)
    plan = plan_for(network, shape, ratio=0.5)
    for _ in range(3):
        widths = np.array([int(rng.integers(1, group.width + 1)) for group in groups])
        entries = zip(plan.groups, widths.tolist(), strict=True)
        cut = [GroupPlan(entry.layer, entry.width, list(range(width))) for entry, width in entries]
        twin = copy.deepcopy(network)
        apply_plan(twin, shape, replace(plan, groups=cut))
        cost = model.cost(widths[None])
        assert cost["params"].tolist() == [parameters(twin)]
        assert cost["macs"][0] == pytest.approx(count_macs(twin, shape), rel=1e-9)
        assert 2 * cost["operations"][0] == flops(twin, shape)


def test_products_that_grow_alike_are_one() -> None:
    sizes, slopes = np.array([[6.0, 8], [6, 1], [6, 8]]), np.zeros((3, 2, 2))
    slopes[:, 0, 0], slopes[::2, 1, 1] = 1, 1
    one = Products(np.array([9.0, 4, 36]), sizes, slopes).merged()
    assert len(one.fixed) == 2
    change = np.array([[0.0, 0], [-2, -3]])
    assert one.at(change).sum(1).tolist() == [45 * 48 + 4 * 6, 45 * 4 * 5 + 4 * 4]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_budget_of_operations_is_met(scope: str) -> None:
    shape = (1, 64, 32)
    network = Hidden(10)
    before = flops(network, shape) // 2
    plan = plan_for(network, shape, ratio=None, budget=f"operations<={before // 2}", scope=scope)
    apply_plan(network, shape, plan)
    assert 0.95 * before // 2 < flops(network, shape) // 2 <= before // 2


def test_the_tightest_of_macs_and_operations_holds() -> None:
    shape, network = (1, 64, 32), Hidden(10)
    budget = "macs<=60000,operations<=200000"
    apply_plan(network, shape, plan_for(network, shape, ratio=None, budget=budget))
    assert count_macs(network, shape) <= 60_000
    assert 0.9 * 200_000 < flops(network, shape) // 2 <= 200_000
    with pytest.raises(UserError, match=r"operations<=1000 \(at least [\d,]+ operations\) cannot"):
        plan_for(Hidden(10), shape, ratio=None, budget="operations<=1000")


def test_operations_that_cannot_be_foreseen_are_refused() -> None:
    with pytest.raises(UserError, match=r"operations cannot be foreseen, .* when one is narrower"):
        plan_for(Fickle(), (1, 16, 16), ratio=None, budget="operations<=9e4")
