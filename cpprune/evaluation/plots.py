"""Plots, drawn with matplotlib where it is installed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.files.atomic import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind readers can tell apart, without the yellow, which is
# faint on white. Lines beyond the number of colours differ in marker and dash.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", "--", ":", "-.")

INCHES = (12.0, 5.0)
SQUARE = (7.0, 7.0)
DPI = 150


def require_matplotlib(what: str) -> None:
    """Raise UserError unless matplotlib is installed.

    Args:
        what: the command that needs it, such as "cpprune sensitivity".
    """
    if find_spec("matplotlib") is None:
        raise UserError(f"{what} draws with matplotlib: pip install 'cpprune[report]'")


def confusion_figure(classes: Sequence[str], confusion_KK: NDArray[np.int64]) -> Figure:
    """Draw a confusion matrix: true classes in rows, predicted ones in columns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SQUARE, layout="constrained")
    panel = figure.subplots()
    panel.imshow(confusion_KK, cmap="Blues")
    middle = confusion_KK.max() / 2
    for (row, column), clips in np.ndenumerate(confusion_KK):
        colour = "white" if clips > middle else "black"
        panel.text(column, row, f"{clips:,}", ha="center", va="center", color=colour)
    panel.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    panel.set_yticks(range(len(classes)), classes)
    panel.set(xlabel="predicted class", ylabel="true class")
    return figure


def draw_sensitivity(found: Mapping[str, Any], path: Path) -> None:
    """Plot macro accuracy and log loss over the fraction of channels pruned, one line per layer.

    Args:
        found: returned by `cpprune.pruning.sensitivity.measure_sensitivity`.
        path: of the PNG to write, 1800 × 750 pixels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"macro_accuracy": "macro accuracy", "log_loss": "log loss (nats)"}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        baseline = found["baseline"][key]
        panel.axhline(baseline, color="0.6", linewidth=1, zorder=0)
        for number, row in enumerate(found["layers"]):
            panel.plot(
                [0, *(1 - width / row["width"] for width in row["widths"])],
                [baseline, *row[key]],
                label=row["layer"],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
                linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
                markersize=4,
                linewidth=1.5,
            )
        panel.set(xlabel="fraction of the layer's channels pruned", ylabel=title, xlim=(0, 1))
        panel.grid(alpha=0.3)
    figure.suptitle(
        f"One layer pruned at a time, without fine-tuning: criterion {found['criterion']}, "
        f"{found['clips']:,} clips of {found['split']}"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    columns = -(-len(labels) // 24)
    figure.legend(handles, labels, loc="outside right upper", fontsize="small", ncols=columns)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(path, path.parent, picture.getvalue())
