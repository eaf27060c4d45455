"""Plots of a sweep: the metric over trials and over each parameter."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.evaluation.plots import COLOURS, DPI
from cpprune.sweeps.results import SweepResults, TrialRecord
from shards.files.atomic import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
PANEL_INCHES = (4.0, 3.2)


def draw_sweep(found: SweepResults, logarithmic: set[str], path: Path) -> None:
    """Plot the metric over trials, and over each parameter that varies.

    Args:
        found: at least one trial is done.
        logarithmic: names of parameters with a logarithmic axis.
        path: of the PNG to write.
    """
    from matplotlib.figure import Figure

    trials = sorted(
        (t for t in found.trials if t.state in ("done", "ended early") and t.value is not None),
        key=lambda trial: trial.number,
    )
    names = [
        name
        for name in trials[0].arguments
        if len({str(trial.arguments[name]) for trial in trials}) > 1
    ]
    columns = min(COLUMNS, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    _draw_history(panels[0], trials, found.goal)
    for panel, name in zip(panels[1:], names, strict=False):
        _draw_parameter(panel, trials, name, name in logarithmic)
    for panel in panels[: 1 + len(names)]:
        panel.set_ylabel(found.metric)
        panel.grid(alpha=0.3)
    for panel in panels[1 + len(names) :]:
        panel.set_axis_off()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(path, path.parent, picture.getvalue())


def _draw_history(panel: Axes, trials: list[TrialRecord], goal: str) -> None:
    _scatter(panel, trials, [trial.number for trial in trials])
    done = [(t.number, t.value) for t in trials if t.state == "done" and t.value is not None]
    numbers, values = zip(*done, strict=True)
    best = list(accumulate(values, max if goal == "maximize" else min))
    panel.step(numbers, best, where="post", color=COLOURS[5], label="best so far")
    panel.set_xlabel("trial")
    panel.locator_params("x", integer=True)
    panel.legend(fontsize="small")


def _draw_parameter(panel: Axes, trials: list[TrialRecord], name: str, log: bool) -> None:
    values = [trial.arguments[name] for trial in trials]
    panel.set_xlabel(name)
    numbers = [x for x in values if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if len(numbers) == len(values):
        _scatter(panel, trials, numbers)
        if log:
            panel.set_xscale("log")
        return
    texts = sorted({str(value) for value in values})
    _scatter(panel, trials, [texts.index(str(value)) for value in values])
    panel.set_xticks(range(len(texts)), texts, rotation=20, ha="right")


def _scatter(panel: Axes, trials: list[TrialRecord], x: Sequence[float]) -> None:
    for state, marker, colour in (("done", "o", COLOURS[4]), ("ended early", "x", COLOURS[1])):
        points = [(a, t.value) for a, t in zip(x, trials, strict=True) if t.state == state]
        if points:
            panel.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=state)
