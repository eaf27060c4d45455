"""Cuts by what they cost: no group goes beyond the threshold that all share, checked by trying."""

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from torch import nn

from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.models.resize import layer_widths
from cpprune.pruning.allocation import lowest_first
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.curves import read_sensitivity, unit_costs
from cpprune.pruning.groups import ChannelGroup
from cpprune.pruning.plan import Plan
from cpprune.pruning.planner import scored_groups
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

SHAPE = (1, 64, 32)
RATIOS = [0.2, 0.4, 0.6, 0.8]
BASELINE = 1.25
Make = Callable[..., nn.Module]


def row(layer: str, width: int, losses: Sequence[float]) -> dict[str, Any]:
    widths = [math.floor(width * (1 - ratio) + 1e-9) for ratio in RATIOS]
    return {"layer": layer, "width": width, "widths": widths, "log_loss": list(losses)}


def write(path: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    content = {"format": 1, "criterion": "magnitude", "baseline": {"log_loss": BASELINE}}
    path.write_text(json.dumps({**content, "layers": rows, **changes}))
    return path


def increase(entry: dict[str, Any], left: int) -> float:
    """What cutting a group to a width costs, read off by hand."""
    knots = [(0.0, 0.0)]
    for width, loss in zip(entry["widths"], entry["log_loss"], strict=True):
        knots.append((1 - width / entry["width"], max(knots[-1][1], loss - BASELINE)))
    cut = 1 - left / entry["width"]
    for (x0, y0), (x1, y1) in pairwise(knots):
        if x0 - 1e-12 <= cut <= x1 + 1e-12:
            return y0 + (y1 - y0) * (cut - x0) / (x1 - x0)
    return math.inf


def kept(path: Path, groups: list[ChannelGroup], ratio: float) -> list[int]:
    widths = [group.width for group in groups]
    costs = unit_costs(read_sensitivity(path), groups, widths, "magnitude")
    return lowest_first(groups, costs, math.floor(sum(widths) * (1 - ratio) + 1e-9)).tolist()


def random_rows(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for number, width in enumerate((32, 20, 64, 10)):
        losses = BASELINE + np.cumsum(rng.normal(0.2, 0.3, len(RATIOS))) * rng.uniform(0.1, 2)
        rows.append(row(f"layer{number}", width, losses.tolist()))
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_one_threshold_for_all(seed: int, tmp_path: Path) -> None:
    rows = random_rows(seed)
    assert any((np.diff([BASELINE, *entry["log_loss"]]) < 0).any() for entry in rows)
    path = write(tmp_path / "sensitivity.json", rows)
    groups = [ChannelGroup(entry["layer"], entry["width"], 1, None) for entry in rows]
    before = [group.width for group in groups]
    for ratio in (0.05, 0.2, 0.41, 0.6, 0.75):
        widths = kept(path, groups, ratio)
        assert sum(widths) == math.floor(126 * (1 - ratio))
        threshold = max(increase(*pair) for pair in zip(rows, widths, strict=True))
        # One channel more, of whichever group, would cost as much or more.
        for entry, width in zip(rows, widths, strict=True):
            assert increase(entry, width - 1) >= threshold - 1e-12
        assert all(width <= old for width, old in zip(widths, before, strict=True))
        before = widths
    assert before != [group.width for group in groups]


def test_free_cuts_come_first_and_alike(tmp_path: Path) -> None:
    # Neither loses anything up to 40 %, whatever noise says; the third always does.
    rows = [
        row("a", 40, [1.2, 1.1, 1.3, 1.4]),
        row("b", 80, [1.25, 1.0, 1.3, 1.4]),
        row("c", 40, [1.3, 1.4, 1.5, 1.6]),
    ]
    path = write(tmp_path / "sensitivity.json", rows)
    groups = [ChannelGroup(entry["layer"], entry["width"], 1, None) for entry in rows]
    assert kept(path, groups, 24 / 160) == [32, 64, 40]
    assert kept(path, groups, 48 / 160) == [24, 48, 40]


def test_beyond_what_was_measured_all_go_on_alike(tmp_path: Path) -> None:
    rows = [row("a", 40, [1.3] * 4), row("b", 80, [1.9, 2.0, 2.1, 3.0])]
    path = write(tmp_path / "sensitivity.json", rows)
    groups = [ChannelGroup(entry["layer"], entry["width"], 1, None) for entry in rows]
    assert kept(path, groups, 0.5)[0] == 8  # not fewer, however little it costs
    assert kept(path, groups, 0.8) == [8, 16]
    assert kept(path, groups, 0.9) == [4, 8]
    assert kept(path, groups, 0.999) == [1, 1]


def test_blocks_lose_the_same(tmp_path: Path) -> None:
    rows = [row("a", 40, [1.3, 1.4, 1.5, 1.6]), row("b", 40, [1.3, 1.4, 1.5, 1.6])]
    path = write(tmp_path / "sensitivity.json", rows)
    groups = [ChannelGroup("a", 40, 4, None), ChannelGroup("b", 40, 1, None)]
    assert kept(path, groups, 0.4) == [24, 24]


def file_for(network: nn.Module, path: Path, **changes: Any) -> Path:
    """Curves on which the first groups of the network cost little and the last ones much."""
    groups = [entry.group for entry in scored_groups(network, SHAPE, PruneConfig())]
    rows = [
        row(group.layer, group.width, [BASELINE + ratio * 2**number for ratio in RATIOS])
        for number, group in enumerate(groups)
    ]
    return write(path, rows, **changes)


def plan_for(network: nn.Module, path: Path, **changes: Any) -> Plan:
    return networks.plan_for(network, scope="sensitivity", sensitivity=str(path), **changes)


def test_a_ratio_cuts_as_much_in_all(make_network: Make, tmp_path: Path) -> None:
    network = make_network(base_channels=8)
    path = file_for(network, tmp_path / "sensitivity.json")
    plan = plan_for(network, path, ratio=0.41)
    widths = [entry.width for entry in plan.groups]
    parts = [1 - len(entry.keep) / entry.width for entry in plan.groups]
    assert sum(len(entry.keep) for entry in plan.groups) == math.floor(sum(widths) * 0.59)
    assert plan.scope == "sensitivity"
    # The cheaper a group is, the more of it goes: twice the cost for each group after it.
    assert all(a >= b - 1 / 8 for a, b in pairwise(parts))  # the narrowest have 8 channels
    assert parts[0] > 0.75
    assert parts[-1] < 0.1
    # In two steps the same comes out, with the widths of the start in the file.
    first = plan_for(network, path, ratio=0.41, fraction=0.5)
    original = layer_widths(network)
    apply_plan(network, SHAPE, first)
    second = plan_for(network, path, ratio=0.41, original_widths=original)
    assert [len(e.keep) for e in second.groups] == [len(e.keep) for e in plan.groups]


@pytest.mark.parametrize("budget", ["params<=4000", "macs<=100e3", "latency<=0.1ms,params<=6000"])
def test_budgets_are_met(budget: str, make_network: Make, tmp_path: Path) -> None:
    network = make_network(base_channels=8)
    path = file_for(network, tmp_path / "sensitivity.json")
    fake = {"measure": lambda twin, shape, device: count_macs(twin, shape) / 1e6}
    apply_plan(network, SHAPE, plan_for(network, path, budget=budget, **fake))
    parameters, macs = count_parameters(network), count_macs(network, SHAPE)
    bounds = {"params<=4000": (4000, 1e9), "macs<=100e3": (1e9, 1e5)}.get(budget, (6000, 1e5))
    assert parameters <= bounds[0]
    assert macs <= bounds[1]
    assert max(parameters / bounds[0], macs / bounds[1]) > 0.9
    widths = list(layer_widths(network).items())
    assert dict(widths)["stage3.block2.conv1"] > dict(widths)["stage2.block1.conv2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criterion": "lamp"}, r"criterion lamp, not prune.criterion=magnitude; set the same"),
        ({"format": 2}, r"format 2, not 1; make it anew with `cpprune sensitivity`"),
        ({"layers": [row("in_c.0", 8, [1, 2, 3, 4])]}, r"other layers or widths \(differing: st"),
        ({"layers": 3}, r"layers: expected array, got int; make it anew"),
        ({"layers": [row("in_c.0", 8, [1, 2])]}, r"widths must fall, each with a log loss"),
        ({"layers": [row("in_c.0", 8, [1, 2, math.nan, 3])]}, r"each with a log loss"),
        ({"baseline": None}, r"baseline: expected object, got null; make it anew"),
    ],
)
def test_other_files_are_refused(
    change: dict[str, Any], message: str, make_network: Make, tmp_path: Path
) -> None:
    network = make_network(base_channels=8)
    path = file_for(network, tmp_path / "sensitivity.json", **change)
    with pytest.raises(UserError, match=rf"^{path}: .*{message}"):
        plan_for(network, path, ratio=0.3)


def test_other_networks_are_refused(make_network: Make, tmp_path: Path) -> None:
    path = file_for(make_network(base_channels=8), tmp_path / "sensitivity.json")
    other = make_network(widths=[8, 16, 33])
    message = (
        r"\(differing: stage3.block1.conv1, stage3.block1.shortcut.conv, stage3.block2.conv1\)"
    )
    with pytest.raises(UserError, match=message):
        plan_for(other, path, ratio=0.3)
    with pytest.raises(UserError, match=r"nothing\.json: cannot be read"):
        read_sensitivity(tmp_path / "nothing.json")


def test_the_scope_and_the_file_belong_together() -> None:
    assert PruneConfig(scope="sensitivity", sensitivity="x.json").sensitivity == "x.json"
    for wrong in ({"scope": "sensitivity"}, {"sensitivity": "x.json"}):
        with pytest.raises(ValueError, match=r"prune.scope=\w+, prune.sensitivity=.*needs the"):
            PruneConfig(**wrong)  # type: ignore[arg-type]
