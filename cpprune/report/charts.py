"""The charts of reports, as SVG; the style sheet of the page colours them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from cpprune.report.svg import CHARACTER, WIDTH, Scale, bounds, drawing, frame, tag, tick_label

HEIGHT = 240
LABEL = (14, 11)  # width and height of a point's letters
MAX_DOTS = 60  # a longer line has none
MAX_COUNTS = 20  # the cells of a confusion matrix of more classes have no numbers


@dataclass(frozen=True)
class Series:
    """A line: its name, and a value for each epoch, which is not finite where there is none."""

    name: str
    values: Sequence[float]


class Event(NamedTuple):
    """What happened at the start of an epoch (from 1), and the mark that stands for it."""

    epoch: int
    mark: str
    what: str


def curves(
    label: str,
    y_title: str,
    epochs: Sequence[int],
    series: Sequence[Series],
    *,
    events: Sequence[Event] = (),
    best: int | None = None,
    zero: bool = False,
) -> Markup:
    """Plot lines over epochs.

    Args:
        label: of the chart.
        y_title: quantity and unit.
        epochs: epoch of each value, from 1.
        series: the lines.
        events: what happened to the network.
        best: the best epoch.
        zero: whether the vertical axis begins at zero.
    """
    x = Scale(min(epochs) - 0.5, max(epochs) + 0.5, 46, WIDTH - 8)
    y = Scale(*bounds((v for line in series for v in line.values), zero), HEIGHT - 36, 52)
    x_ticks = [(n, f"{n:g}") for n in x.ticks(8, whole=True)]
    parts = frame(x, y, "epoch", y_title, x_ticks, [(v, tick_label(v)) for v in y.ticks()])
    for event in events:
        at = x(event.epoch - 0.5)
        tip = f"{event.what} at the start of epoch {event.epoch}"
        parts.append(tag("line", tip=tip, x1=at, x2=at, y1=y.start, y2=y.end, class_="cut"))
        parts.append(
            tag("text", event.mark, x=at, y=y.end - 2, class_="tick", text_anchor="middle")
        )
    if best is not None:
        at = x(best)
        parts.append(tag("line", x1=at, x2=at, y1=y.start, y2=y.end, class_="best"))
        parts.append(tag("text", "best", x=at, y=y.end - 2, class_="tick", text_anchor="middle"))
    for number, line in enumerate(series):
        parts += _line(x, y, epochs, line.values, number)
    parts += legend([line.name for line in series])
    for place, epoch in enumerate(epochs):  # bands with the tooltips
        texts = [
            f"{line.name} {line.values[place]:.4g}"
            if math.isfinite(line.values[place])
            else f"{line.name}: none"
            for line in series
        ]
        left, right = x(epoch - 0.5), x(epoch + 0.5)
        tip, tall = f"epoch {epoch}: {', '.join(texts)}", y.start - y.end
        band = tag("rect", tip=tip, class_="band", x=left, y=y.end, width=right - left, height=tall)
        parts.append(band)
    return drawing(label, HEIGHT, parts)


def _line(
    x: Scale, y: Scale, epochs: Sequence[int], values: Sequence[float], number: int
) -> list[Markup]:
    points = [(x(e), y(v)) for e, v in zip(epochs, values, strict=True) if math.isfinite(v)]
    text = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    parts = [tag("polyline", points=text, class_=f"line s{number}")]
    if len(points) <= MAX_DOTS:
        parts += [tag("circle", cx=a, cy=b, r=2.2, class_=f"dot s{number}") for a, b in points]
    return parts


def legend(names: Sequence[str]) -> list[Markup]:
    """Return the legend above a chart; nothing for a single line."""
    parts: list[Markup] = []
    at = 46.0
    for number, name in enumerate(names if len(names) > 1 else []):
        parts.append(tag("line", x1=at, x2=at + 18, y1=24, y2=24, class_=f"line s{number}"))
        parts.append(tag("text", name, x=at + 23, y=28, class_="label"))
        at += 38 + CHARACTER * len(name)
    return parts


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """Draw a confusion matrix: true classes in rows, predicted ones in columns, shaded by row."""
    longest = max(map(len, classes))
    margin = min(8 + CHARACTER * longest, 150.0)
    cell = max((WIDTH - margin - 4) / len(classes), 12.0)
    width = margin + cell * len(classes) + 4
    parts = [tag("text", "true ↓   predicted →", x=0, y=12, class_="label")]
    for row, (name, line) in enumerate(zip(classes, counts, strict=True)):
        middle = margin + (row + 0.5) * cell
        text = _shortened(name, margin)
        parts.append(
            tag("text", text, x=margin - 6, y=middle + 4, class_="tick", text_anchor="end")
        )
        turned = f"translate({middle + 4:.1f} {margin - 6:.1f}) rotate(-90)"
        parts.append(tag("text", text, transform=turned, class_="tick"))
        total = sum(line)
        for column, count in enumerate(line):
            part = count / total if total else 0.0
            tip = f"{name}, predicted {classes[column]}: {count:,} of {total:,} clips ({part:.1%})"
            x, y, side = margin + column * cell, margin + row * cell, cell - 1
            empty = tag("rect", class_="empty", x=x, y=y, width=side, height=side)
            shade = tag("rect", class_="heat", fill_opacity=part, x=x, y=y, width=side, height=side)
            number: Markup | str = ""
            if count and len(classes) <= MAX_COUNTS:
                x, y = x + cell / 2 - 0.5, y + cell / 2 + 3.5
                shown = tick_label(count)
                number = tag("text", shown, class_="count", text_anchor="middle", x=x, y=y)
            parts.append(tag("g", empty, shade, number, tip=tip))
    label = f"Confusion matrix of {len(classes)} classes: true in rows, predicted in columns"
    return drawing(label, margin + cell * len(classes) + 2, parts, width)


def _shortened(name: str, room: float) -> str:
    most = int((room - 8) / CHARACTER) + 1
    return name if len(name) <= most else f"{name[: most - 1]}…"


def reliability(
    *,
    expected_calibration_error: float,
    clips: Sequence[int],
    confidence: Sequence[float],
    accuracy: Sequence[float],
) -> Markup:
    """Draw a reliability diagram: accuracy and number of clips by bin of confidence.

    The arguments are what `cpprune.evaluation.metrics.calibration` returns.
    """
    x = Scale(0, 1, 46, WIDTH - 8)
    y = Scale(0, 1, HEIGHT - 36, 26)
    ticks = [(n / 5, f"{n / 5:g}") for n in range(6)]
    parts = frame(x, y, "confidence (grey: clips)", "accuracy", ticks, ticks)
    bins, most = len(clips), max(*clips, 1)
    for number, (here, sure, right) in enumerate(zip(clips, confidence, accuracy, strict=True)):
        left = x(number / bins)
        width = x((number + 1) / bins) - left - 1
        tall = 0.25 * (y.start - y.end) * here / most
        tip = f"{here:,} clips of mean confidence {sure:.3f}: accuracy {right:.3f}"
        if here:
            top, side, half = y(right), left + width / 4, width / 2
            height = y.start - top
            bar = tag("rect", x=left, width=width, class_="bar", y=top, height=height)
            top = y.start - tall
            share = tag("rect", x=side, width=half, class_="share", y=top, height=tall)
            parts.append(tag("g", bar, share, tip=tip))
    parts.append(tag("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="diagonal"))
    label = f"Reliability diagram; expected calibration error {expected_calibration_error:.4f}"
    return drawing(label, HEIGHT, parts)


def widths(stages: Sequence[tuple[str, Mapping[str, int]]]) -> Markup:
    """Draw the width of every layer: a bar for what is left of it, a line for each step between.

    Args:
        stages: name of each, such as "from epoch 3 on", and the width of every layer.
    """
    (_, first), *_ = stages
    steps = [widths for _, widths in stages[1:]] or [first]
    layers = list(first)
    height = 18
    margin = min(10 + CHARACTER * max(map(len, layers)), 170.0)
    numbers = [" → ".join(str(stage[layer]) for stage in _steps(stages)) for layer in layers]
    room = 8 + CHARACTER * max(map(len, numbers))
    x = Scale(0, max(first.values()), margin, max(WIDTH - room, margin + 60))
    parts = [tag("text", "channels of each layer", x=0, y=12, class_="label")]
    for row, layer in enumerate(layers):
        top = 22 + row * height
        before, *between, after = (x(widths[layer]) for widths in (first, *steps))
        bars = [
            tag("rect", x=margin, width=end - margin, class_=kind, y=top, height=height - 5)
            for end, kind in ((before, "whole"), (after, "bar"))
        ]
        bars += [
            tag("line", x1=at, x2=at, y1=top, y2=top + height - 5, class_="axis") for at in between
        ]
        tip = f"{layer}: " + ", ".join(f"{stage[layer]} {name}" for name, stage in stages)
        text = _shortened(layer, margin)
        name = tag("text", text, x=margin - 6, y=top + 11, class_="tick", text_anchor="end")
        number = tag("text", numbers[row], x=x.end + 6, y=top + 11, class_="tick")
        parts.append(tag("g", *bars, name, number, tip=tip))
    label = f"Widths of {len(layers)} layers" + (
        ", before and after each pruning step" * (len(stages) > 1)
    )
    return drawing(label, 24 + height * len(layers), parts)


def _steps(stages: Sequence[tuple[str, Mapping[str, int]]]) -> list[Mapping[str, int]]:
    """Return the widths to print: all of up to three stages, else the first and the last."""
    found = [widths for _, widths in stages]
    return found if len(found) <= 3 else [found[0], found[-1]]


@dataclass(frozen=True)
class Point:
    """A point of a Pareto plot.

    Attributes:
        mark: one or two letters, written beside it.
        name: shown by its tooltip.
        cost: parameters or MACs.
        value: higher is better.
        deviation: standard deviation of the value, or None.
        front: whether the point is on the Pareto front.
        reported: whether others reported it; else it was measured here.
    """

    mark: str
    name: str
    cost: float
    value: float
    deviation: float | None
    front: bool
    reported: bool = False


def pareto(label: str, x_title: str, y_title: str, points: Sequence[Point]) -> Markup:
    """Plot values over costs; a stepped line joins the points of the Pareto front."""
    values = [p.value + sign * (p.deviation or 0) for p in points for sign in (-1, 1)]
    x = Scale(*bounds([p.cost for p in points], zero=True), 46, WIDTH - 16)
    y = Scale(*bounds(values), HEIGHT - 36, 26)
    x_ticks, y_ticks = ([(v, tick_label(v)) for v in axis.ticks()] for axis in (x, y))
    parts = frame(x, y, x_title, y_title, x_ticks, y_ticks)
    front = sorted((p.cost, p.value) for p in points if p.front)
    path = [f"{x(c):.1f},{y(v):.1f}" for c, v in front[:1]]
    for (_, before), (cost, value) in pairwise(front):
        path += [f"{x(cost):.1f},{y(before):.1f}", f"{x(cost):.1f},{y(value):.1f}"]
    if front:
        path.append(f"{x.end:.1f},{y(front[-1][1]):.1f}")
    parts.append(tag("polyline", points=" ".join(path), class_="front"))
    taken: list[tuple[float, float]] = []
    for point in points:
        side, low = x(point.cost) + 8, y(point.value) - 6
        while any(abs(side - a) < LABEL[0] and abs(low - b) < LABEL[1] for a, b in taken):
            low += 1
        taken.append((side, low))
        parts.append(_point(x, y, point, (side, low)))
    return drawing(label, HEIGHT, parts)


def _point(x: Scale, y: Scale, point: Point, label: tuple[float, float]) -> Markup:
    at, height = x(point.cost), y(point.value)
    kind = "reported" if point.reported else ("on" if point.front else "off")
    tip = f"{point.name}: {point.value:.4f} at {point.cost:,.0f}"
    parts = []
    if point.deviation is not None:
        low, high = y(point.value - point.deviation), y(point.value + point.deviation)
        parts.append(tag("line", x1=at, x2=at, y1=low, y2=high, class_="axis"))
        tip += f", ± {point.deviation:.4f}"
    if point.reported:
        turned = f"rotate(45 {at:.1f} {height:.1f})"
        kind, x0, y0 = f"point {kind}", at - 4.5, height - 4.5
        parts.append(tag("rect", class_=kind, transform=turned, x=x0, y=y0, width=9, height=9))
    else:
        parts.append(tag("circle", cx=at, cy=height, r=5.5, class_=f"point {kind}"))
    parts.append(tag("text", point.mark, x=label[0], y=label[1], class_="mark"))
    return tag("g", *parts, tip=tip)


def bar(part: float) -> Markup:
    """Draw a bar for a fraction from 0 to 1, beside its number in a cell of a table."""
    filled = tag("rect", width=100 * part, height=10, class_="bar")
    whole = tag("rect", width=100, height=10, class_="empty")
    return tag("svg", whole, filled, viewBox="0 0 100 10", class_="inline", aria_hidden="true")
