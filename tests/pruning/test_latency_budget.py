"""Limits on latency: with measurements made up here, so that every outcome can be worked out."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow
from networks import SHAPE, plan_for
from torch import nn

import cpprune
from cpprune.evaluation.complexity import count_macs, count_parameters, latency
from cpprune.models.resize import layer_widths
from cpprune.pruning.allocation import Bounds, meet_measured
from cpprune.pruning.budget import Limit, parse_budget
from cpprune.pruning.preview import preview
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

Make = Callable[..., nn.Module]


def per_mac(network: nn.Module, input_shape: Sequence[int], device: torch.device) -> float:
    """A machine that does a million multiply-accumulates in a millisecond."""
    assert device == next(network.parameters()).device
    return count_macs(network, input_shape) / 1e6


def cut_to(network: nn.Module, budget: str | None, **changes: Any) -> nn.Module:
    twin = copy.deepcopy(network)
    apply_plan(twin, SHAPE, plan_for(twin, budget=budget, **{"measure": per_mac, **changes}))
    return twin


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("latency<=3ms", 3),
        ("latency <= 2.5 ms", 2.5),
        ("latency<=750us", 0.75),
        ("latency<=0.02s", 20),
        ("latency<=2e-2s", 20),
        ("latency<=1E+3us", 1),
    ],
)
def test_units(text: str, milliseconds: float) -> None:
    (limit,) = parse_budget(text)
    assert (limit.text, limit.quantity) == (text, "latency")
    assert limit.bound == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    "text",
    [
        "latency<=3",
        "latency<=0ms",
        "latency<=-1ms",
        "latency<=3m",
        "latency<=3ms@fp16",
        "params<=3ms",
        "latency<=ms",
        "latency<=1.2.3ms",
        "latency<3ms",
        "macs<=1e-3",
    ],
)
def test_what_is_no_limit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no limit; write (params|macs|latency)<="):
        parse_budget(f"params<=47028,{text}")


@pytest.fixture(scope="module")
def rungs() -> dict[int, tuple[int, ...]]:
    """MACs → widths, of every network that a uniform cut makes of CP-ResNet 8/16/32."""
    cuts = range(876)
    widths = {tuple(int(w * (1 - cut / 1000) + 1e-9) for w in (8, 16, 32)) for cut in cuts}
    return {count_macs(cpprune.build_model("cp_resnet", widths=list(w)), SHAPE): w for w in widths}


@pytest.mark.parametrize("limit", [0.352, 0.1, 0.031])
def test_the_widest_of_the_narrowing_that_is_fast_enough(
    limit: float, rungs: dict[int, tuple[int, ...]], make_network: Make
) -> None:
    best = max(macs for macs in rungs if macs <= limit * 1e6)
    found = cut_to(make_network(base_channels=8), f"latency<={limit}ms")
    assert count_macs(found, SHAPE) == best
    stages = layer_widths(found)
    layers = ("in_c.0", "stage2.block2.conv1", "stage3.block1.conv1")
    assert tuple(stages[layer] for layer in layers) == rungs[best]


@pytest.mark.slow
@pytest.mark.parametrize("scope", [slow("local"), "global"])
def test_limits_of_both_kinds_hold_together(scope: str, make_network: Make) -> None:
    network = make_network(base_channels=8)
    total = count_parameters(network)
    both = cut_to(network, f"params<={total // 2},latency<=100us", scope=scope)
    assert count_parameters(both) <= total // 2
    assert 0.08e6 < count_macs(both, SHAPE) <= 0.1e6
    # Where the latency is no limit, the others are used up as if it were not there.
    loose = cut_to(network, f"latency<=1s,params<={total // 2}", scope=scope)
    alone = cut_to(network, f"params<={total // 2}", scope=scope)
    assert layer_widths(loose) == layer_widths(alone) != layer_widths(both)
    # The tightest of several is what counts.
    tight = cut_to(network, f"latency<=0.2ms,latency<=0.1ms,params<={total // 2}", scope=scope)
    assert layer_widths(tight) == layer_widths(both)


def test_a_network_that_is_fast_enough_stays_whole(make_network: Make) -> None:
    network = make_network(base_channels=4)
    calls = []

    def measure(twin: nn.Module, *rest: Any) -> float:
        calls.append(layer_widths(twin))
        return 3.0

    assert layer_widths(cut_to(network, "latency<=3ms", measure=measure)) == layer_widths(network)
    assert calls == [layer_widths(network)]


def test_a_latency_that_cannot_be_met_is_named(make_network: Make) -> None:
    network = make_network(base_channels=4)
    narrowest = cut_to(network, None, ratio=0.99, min_width=2)
    least = count_macs(narrowest, SHAPE) / 1e6
    message = (
        rf"^prune.budget: latency<=1us \(at least {least:.3g}ms here\) cannot be met .* widths"
    )
    with pytest.raises(UserError, match=message):
        cut_to(network, "params<=1e6,latency<=1us", min_width=2)


@pytest.mark.slow
def test_steps_lead_to_the_limit(make_network: Make) -> None:
    network = make_network(base_channels=8)
    original = layer_widths(network)
    once = cut_to(network, "latency<=0.1ms")
    macs = [count_macs(network, SHAPE)]
    for fraction in (0.5, 1.0):
        network = cut_to(network, "latency<=0.1ms", fraction=fraction, original_widths=original)
        macs.append(count_macs(network, SHAPE))
    assert layer_widths(network) == layer_widths(once)
    assert macs[0] > macs[1] > 0.15e6 > 0.1e6 >= macs[2]


def one_group(width: int) -> Bounds:
    return Bounds(np.array([1]), np.array([width]), np.array([1]))


def narrowing(part: float) -> Any:
    return np.array([int(100 * (1 - part) + 1e-9)])


def test_every_limit_is_met_as_tightly_as_it_can_be() -> None:
    for bound in np.linspace(1.5, 120, 80):
        limit = Limit("latency<=…", "latency", float(bound))
        found = meet_measured(
            limit, np.array([90]), one_group(100), narrowing, lambda w: float(w[0])
        )
        assert found.tolist() == [min(90, int(bound))]


def test_no_group_gets_wider_again() -> None:
    def both(part: float) -> Any:
        return np.array([int(50 * (1 - part) + 1e-9), int(100 * (1 - part) + 1e-9)])

    allowed = Bounds(np.array([1, 1]), np.array([50, 100]), np.array([1, 1]))
    limit = Limit("latency<=…", "latency", 60.0)
    found = meet_measured(limit, np.array([10, 80]), allowed, both, lambda w: float(w.sum()))
    assert found.tolist() == [10, 50]


def test_a_measurement_that_was_off_is_made_up_for() -> None:
    limit = Limit("latency<=40ms", "latency", 40.0)
    whole = np.array([100])
    calls = 0

    def quicker_at_first(widths: Any) -> float:
        nonlocal calls
        calls += 1
        return float(widths[0]) * (2 / 3 if calls <= 7 else 1)

    found = meet_measured(limit, whole, one_group(100), narrowing, quicker_at_first)
    assert found.tolist() == [40]
    assert calls < 24
    gets_busy = iter([100.0, *[1.0] * 6, *[41.0] * 1000])
    with pytest.raises(UserError, match=r"latency<=40ms \(at least 41ms here\)"):
        meet_measured(limit, whole, one_group(100), narrowing, lambda _: next(gets_busy))


def test_the_preview_measures_before_and_after(make_network: Make) -> None:
    network = make_network(base_channels=4)
    plan = plan_for(network, ratio=0.5)
    shown = preview(network, SHAPE, [plan], parse_budget("latency<=1s"), per_mac)
    for key in ("before", "after"):
        assert shown[key]["latency_ms"] == shown[key]["macs"] / 1e6
    assert "latency_ms" not in preview(network, SHAPE, [plan])["after"]


def test_a_measurement_that_was_slowed_down_is_repeated() -> None:
    limit = Limit("latency<=40ms", "latency", 40.0)
    seen: set[int] = set()

    def slow_at_first(widths: Any) -> float:
        slowed = widths[0] not in seen
        seen.add(widths[0])
        return float(widths[0]) * (2 if slowed else 1)

    found = meet_measured(limit, np.array([100]), one_group(100), narrowing, slow_at_first)
    assert found.tolist() == [40]


@pytest.mark.slow
def test_a_real_clock(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of this thread: other processes have no part in it.
    monkeypatch.setattr(time, "perf_counter", time.thread_time)
    shape = (1, 256, 44)
    network = make_network()
    narrow = cpprune.build_model("cp_resnet", widths=[4, 4, 4])
    device = torch.device("cpu")

    def half_way() -> bool:
        limit = (latency(network, shape, device) + latency(narrow, shape, device)) / 2
        twin = copy.deepcopy(network)
        apply_plan(twin, shape, plan_for(network, shape, budget=f"latency<={limit}ms"))
        return count_parameters(narrow) < count_parameters(twin) < count_parameters(network)

    assert any(half_way() for _ in range(4))
