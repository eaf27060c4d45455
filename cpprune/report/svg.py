"""SVG elements, scales and axes. Text and attributes are escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

# Width of a drawing in its own units: that of a phone's screen, where its text is legible.
WIDTH = 400
CHARACTER = 6.2  # approximate width of a character in an 11-unit font


def tag(name: str, *children: object, tip: str | None = None, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        *children: text, which is escaped, or other elements.
        tip: text of the tooltip.
        **attributes: `class_` and `font_size` become class and font-size; None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    title = f"<title>{escape(tip)}</title>" if tip is not None else ""
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{title}{inside}</{name}>")  # noqa: S704 - escaped above


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def drawing(label: str, height: float, parts: Iterable[Markup], width: float = WIDTH) -> Markup:
    """Return a drawing with a label for screen readers.

    Args:
        label: one sentence on what it shows.
        height: in its own units.
        parts: its elements, from back to front.
        width: in its own units.
    """
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        xmlns="http://www.w3.org/2000/svg",
    )


@dataclass(frozen=True)
class Scale:
    """A linear scale.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: in units of the drawing.
        end: in units of the drawing.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        span = self.high - self.low
        return self.start + (value - self.low) / span * (self.end - self.start)

    def ticks(self, most: int = 8, whole: bool = False) -> list[float]:
        """Return at most `most` round values within the scale.

        Args:
            most: maximum number of ticks.
            whole: only whole numbers.
        """
        step = _round_step((self.high - self.low) / max(most - 1, 1))
        if whole:
            step = max(1.0, step)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))


def bounds(values: Iterable[float], zero: bool = False) -> tuple[float, float]:
    """Return bounds that enclose all finite values, with a margin.

    Args:
        values: those that are not finite are ignored.
        zero: whether the lower bound is zero.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = (0.0 if zero else min(finite)), max(finite)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if zero else low - room), high + room


def tick_label(value: float) -> str:
    """Return a number as written on an axis: 20k, 1.5M, 0.02, 2e-05."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:.4g}"


def frame(
    x: Scale,
    y: Scale,
    x_title: str,
    y_title: str,
    x_ticks: Iterable[tuple[float, str]],
    y_ticks: Iterable[tuple[float, str]],
) -> list[Markup]:
    """Return the axes of a plot: grid, numbers and titles.

    Args:
        x: scale from left to right.
        y: scale from bottom to top.
        x_title: written below.
        y_title: written above the upper left corner.
        x_ticks: values and their labels.
        y_ticks: values and their labels.
    """
    parts = [
        tag("text", y_title, x=4, y=12, class_="label"),
        tag("text", x_title, x=x.end, y=y.start + 30, class_="label", text_anchor="end"),
    ]
    for value, text in y_ticks:
        at = y(value)
        parts.append(tag("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", text, x=x.start - 5, y=at + 4, class_="tick", text_anchor="end"))
    for value, text in x_ticks:
        at = x(value)
        parts.append(tag("line", x1=at, x2=at, y1=y.start, y2=y.start + 4, class_="axis"))
        parts.append(tag("text", text, x=at, y=y.start + 16, class_="tick", text_anchor="middle"))
    parts.append(tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    return parts
