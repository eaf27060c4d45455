"""Where a step of a schedule ends: along the widths, or along a curve of the parameter count."""

from collections.abc import Callable

import numpy as np
import pytest
from marks import slow
from torch import nn

from cpprune.models.resize import layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.planner import make_plan
from cpprune.pruning.ramp import parameters_at
from cpprune.pruning.schedule import events
from cpprune.pruning.surgery import apply_plan

SHAPE = (1, 64, 32)
START, END = 131_316, 44_784
Make = Callable[..., nn.Module]


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        ("linear", [109_683, 88_050, 66_417, 44_784]),
        # what is left of the difference: (3/4)³, (2/4)³, (1/4)³, 0
        ("cubic", [81_289.69, 55_600.5, 46_136.06, 44_784]),
        # the same factor each time: (44,784 / 131,316)^(1/4) = 0.764190
        ("exponential", [100_350.4, 76686.7, 58_603.2, 44_784]),
    ],
)
def test_the_curves(ramp: str, expected: list[float]) -> None:
    found = [parameters_at(ramp, (k + 1) / 4, START, END) for k in range(4)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert parameters_at(ramp, 0, START, END) == START


@pytest.mark.slow
@pytest.mark.parametrize("ramp", [slow("linear"), slow("cubic"), "exponential"])
@pytest.mark.parametrize("how", [{"ratio": 0.41}, {"budget": "params<=44784"}])
@pytest.mark.parametrize("scope", [slow("local"), "global"])
def test_every_step_is_just_under_the_curve(
    ramp: str, how: dict[str, object], scope: str, make_network: Make
) -> None:
    network = make_network()
    original = layer_widths(network)
    config = PruneConfig(**how, steps=3, ramp=ramp, scope=scope)  # type: ignore[arg-type]
    counts = []
    for event in events(config):
        plan = make_plan(network, SHAPE, config, original_widths=original, fraction=event.fraction)
        apply_plan(network, SHAPE, plan)
        counts.append(sum(p.numel() for p in network.parameters()))
    end = counts[-1]
    if scope == "local" or "budget" in how:
        assert end <= END
        assert end > 0.99 * END
    curve = [parameters_at(ramp, event.fraction, START, end) for event in events(config)]
    assert all(count <= most for count, most in zip(counts, curve, strict=True))
    # One more channel somewhere would be too many: a channel costs less than two per cent.
    assert np.array(counts) == pytest.approx(np.array(curve), rel=0.06)
    assert counts == sorted(counts, reverse=True)


def test_widths_are_as_they_were(make_network: Make) -> None:
    network = make_network()
    config = PruneConfig(ratio=0.41, steps=3)
    fraction = events(config)[0].fraction
    widths = layer_widths(network)
    plan = make_plan(network, SHAPE, config, original_widths=widths, fraction=fraction)
    assert {len(entry.keep) for entry in plan.groups} == {27, 55, 110}
