"""Elements of a drawing: tags, scales and ticks. Everything that comes from names is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

# Width of a figure in its own units: that of a phone's column, so that text never gets small there.
WIDTH = 400
CHARACTER = 6.2  # width of a character of 11 units, about


def tag(name: str, *children: object, tip: str | None = None, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        *children: text, which is escaped, or other elements.
        tip: what a tooltip says.
        **attributes: `class_` and `font_size` become class and font-size; None leaves one out.
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


def figure(label: str, height: float, parts: Iterable[Markup], width: float = WIDTH) -> Markup:
    """Return a drawing that screen readers know by its label.

    Args:
        label: what it shows, in a sentence.
        height: in its own units, and
        width: likewise.
        parts: its elements, the lowest first.
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
    """Values onto a drawing, linearly.

    Attributes:
        low: the value at `start`, and
        high: that at `end`.
        start: in units of the drawing, and
        end: likewise.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where a value lies."""
        span = self.high - self.low
        return self.start + (value - self.low) / span * (self.end - self.start)

    def ticks(self, most: int = 8, whole: bool = False) -> list[float]:
        """Return at most so many round values within the scale.

        Args:
            most: how many.
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


def around(values: Iterable[float], zero: bool = False) -> tuple[float, float]:
    """Return bounds that hold all finite values, with some room.

    Args:
        values: to hold; those that are not finite are left out.
        zero: begin at zero.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = (0.0 if zero else min(finite)), max(finite)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if zero else low - room), high + room


def in_words(value: float) -> str:
    """Return a number for an axis: 20k, 1.5M, 0.02, 2e-05."""
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
        x: from left to right.
        y: from bottom to top.
        x_title: beneath.
        y_title: above the upper left corner.
        x_ticks: values with what is written there, and
        y_ticks: likewise.
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
