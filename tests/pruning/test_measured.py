"""Limits on exports, with amounts made up here: what is asked how often, met, refused and shown."""

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from networks import SHAPE, plan_for
from torch import nn

from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.evaluation.complexity import latency as latency_in_torch
from cpprune.models.resize import layer_widths
from cpprune.pruning.budget import parse_budget
from cpprune.pruning.measured import Gauge
from cpprune.pruning.preview import preview
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

Make = Callable[..., nn.Module]


class Machine:
    """Stands for exports: flash is 4 bytes a parameter, a million multiply-accumulates take 1 ms.

    Attributes:
        compiled: parameters of the networks whose flash was asked for.
        exported: target, precision and MACs of those that were exported to be timed.
        timings: how often one was timed.
    """

    def __init__(self) -> None:
        self.compiled: list[int] = []
        self.exported: list[tuple[str, int]] = []
        self.timings = 0

    def flash(self, network: nn.Module, input_shape: Sequence[int], precision: str) -> int:
        assert precision == "int8"
        self.compiled.append(count_parameters(network))
        return 4 * self.compiled[-1]

    def export(self, network: nn.Module, input_shape: Sequence[int], form: str) -> int:
        self.exported.append((form, count_macs(network, input_shape)))
        return self.exported[-1][1]

    def time(self, macs: int) -> float:
        self.timings += 1
        return macs / 1e6


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()

    class InC:
        def __init__(self, network: nn.Module, input_shape: Sequence[int], precision: str) -> None:
            self.flash = lambda narrower: made.flash(narrower, input_shape, precision)

    monkeypatch.setattr("cpprune.pruning.measured.InC", InC)
    monkeypatch.setattr("cpprune.pruning.measured.flash_bytes", made.flash)
    monkeypatch.setattr("cpprune.pruning.measured.to_be_timed", made.export)
    monkeypatch.setattr("cpprune.pruning.measured.median_ms", made.time)
    return made


def cut_to(network: nn.Module, budget: str, **changes: Any) -> nn.Module:
    twin = copy.deepcopy(network)
    apply_plan(twin, SHAPE, plan_for(twin, budget=budget, ratio=None, **changes))
    return twin


@pytest.mark.parametrize("scope", ["local", "global"])
def test_flash_is_met_and_each_candidate_compiled_once(
    scope: str, machine: Machine, make_network: Make
) -> None:
    network = make_network(base_channels=8)
    whole = 4 * count_parameters(network)
    found = cut_to(network, f"flash<={whole // 2}@int8", scope=scope)
    assert 0.4 * whole < 4 * count_parameters(found) <= whole // 2
    assert len(machine.compiled) == len(set(machine.compiled)) < 12
    assert not machine.exported


def test_the_latency_of_an_export_is_met(machine: Machine, make_network: Make) -> None:
    network = make_network(base_channels=8)
    whole = count_macs(network, SHAPE) / 1e6
    found = cut_to(network, f"latency<={whole / 2}ms@tflite-int8")
    assert 0.4 * whole < count_macs(found, SHAPE) / 1e6 <= whole / 2
    assert {form for form, _ in machine.exported} == {"tflite-int8"}
    # What was found is timed once more, and not exported again.
    assert machine.timings == len(machine.exported) + 1 == len(set(machine.exported)) + 1


def test_all_limits_hold_together(machine: Machine, make_network: Make) -> None:
    network = make_network(base_channels=8)
    parameters, macs = count_parameters(network), count_macs(network, SHAPE)
    limits = f"latency<={macs / 2e6}ms@onnx-fp32,flash<={3 * parameters}@int8,latency<=1s@c-int8"
    found = cut_to(network, limits)
    assert count_macs(found, SHAPE) <= macs / 2
    assert 4 * count_parameters(found) <= 3 * parameters
    assert {form for form, _ in machine.exported} == {"onnx-fp32", "c-int8"}


def test_what_fits_stays_whole(machine: Machine, make_network: Make) -> None:
    network = make_network(base_channels=4)
    found = cut_to(network, "flash<=1e9@int8,latency<=1000s@onnx-int8")
    assert layer_widths(found) == layer_widths(network)
    assert (len(machine.compiled), len(machine.exported)) == (1, 1)


def test_what_cannot_be_is_refused_by_name(machine: Machine, make_network: Make) -> None:
    network = make_network(base_channels=4)
    with pytest.raises(UserError) as error:
        cut_to(network, "params<=1e6,flash<=10@int8", min_width=2)
    assert str(error.value).startswith(
        f"prune.budget: flash<=10@int8 (at least {4 * min(machine.compiled):,} bytes) cannot be"
    )
    with pytest.raises(UserError) as error:
        cut_to(network, "latency<=0.1us@onnx-int8", min_width=2)
    least = min(macs for _, macs in machine.exported) / 1e6
    assert f"latency<=0.1us@onnx-int8 (at least {least:.3g}ms here) cannot be" in str(error.value)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("flash<=60000@int8", r"the memory of an export in int8 needs .*'cpprune\[export-c\]'"),
        ("latency<=3ms@onnx-int8", r"the latency of an export to onnx-int8 needs .*\[export\]'"),
        (
            "latency<=3ms@tflite-fp32",
            r"the latency of an export to tflite-fp32 needs .*\[tflite\]'",
        ),
    ],
)
def test_missing_packages_are_named(
    budget: str, words: str, make_network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpprune.export.target.find_spec", lambda name: None)
    with pytest.raises(UserError, match=words):
        cut_to(make_network(base_channels=4), budget)


def test_a_measurement_is_repeated_and_a_count_is_not(machine: Machine, make_network: Make) -> None:
    network = make_network(base_channels=4)
    gauge = Gauge(network, SHAPE, latency_in_torch)
    flash, time = parse_budget("flash<=3@int8,latency<=3ms@onnx-int8")
    for limit in (flash, time, flash, time):
        gauge.amount(limit, network)
    assert (len(machine.compiled), len(machine.exported), machine.timings) == (1, 1, 2)


@pytest.mark.slow
def test_the_preview_and_the_dry_run_show_them(
    machine: Machine, make_network: Make, cli: Any
) -> None:
    network = make_network(base_channels=4)
    limits = parse_budget("flash<=3@int8,latency<=3ms@onnx-int8,latency<=2ms@onnx-int8,params<=3")
    shown = preview(network, SHAPE, [plan_for(network, ratio=0.5)], limits)
    for key in ("before", "after"):
        assert shown[key]["flash_bytes"] == {"int8": 4 * shown[key]["parameters"]}
        assert shown[key]["exported_latency_ms"] == {"onnx-int8": shown[key]["macs"] / 1e6}
        assert "latency_ms" not in shown[key]
    assert machine.timings == 2

    words = ["prune", "--dry-run", "--model.widths", "[6, 8, 10]", "--prune.budget"]
    budget = "flash<=5000@int8,latency<=1s@onnx-int8,latency<=1s@c-fp32"
    found = cli(*words, budget, "--json").json
    before, after = found["before"], found["after"]
    assert after["flash_bytes"]["int8"] <= 5000 < before["flash_bytes"]["int8"]
    assert after["exported_latency_ms"].keys() == {"onnx-int8", "c-fp32"}
    text = cli(*words, budget).out
    flash = f"{before['flash_bytes']['int8']:,} → {after['flash_bytes']['int8']:,}"
    assert re.search(rf"\nbytes of flash@int8 +{flash} ", text)
    for form, ms in after["exported_latency_ms"].items():
        was = before["exported_latency_ms"][form]
        assert re.search(rf"\nlatency in ms@{form} +{was:.3f} → {ms:.3f} ", text)
