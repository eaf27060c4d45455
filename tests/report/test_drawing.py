"""Scales, ticks, tags and colours."""

import math
import re
from importlib.resources import files

import pytest

from cpprune.report.charts import Series, confusion, curves
from cpprune.report.svg import Scale, bounds, tag, tick_label

STYLE = files("cpprune.report").joinpath("templates/style.css").read_text()
LIGHT, DARK = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.28, 0.6), (-3, 12_345), (1e-6, 2e-5), (5, 5.0001)]
)
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    step = ticks[1] - ticks[0]
    assert step / 10 ** math.floor(math.log10(step * 1.0001)) == pytest.approx(
        round(step / 10 ** math.floor(math.log10(step * 1.0001)))
    )


def test_a_scale() -> None:
    scale = Scale(10, 20, 200, 100)
    assert (scale(10), scale(20), scale(12.5)) == (200, 100, 175)
    assert Scale(0.5, 3.5, 0, 1).ticks(whole=True) == [1, 2, 3]
    low, high = bounds([1, math.nan, 3, math.inf])
    assert low < 1 < 3 < high < 4
    assert bounds([2, 2])[0] < 2 < bounds([2, 2])[1]
    assert bounds([], zero=True)[0] == 0


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (20_000, "20k"), (1.5e6, "1.5M"), (2e-5, "2e-05"), (0.02, "0.02")]
)
def test_numbers_on_axes(value: float, text: str) -> None:
    assert tick_label(value) == text


def test_tags_escape_what_they_are_given() -> None:
    made = tag("text", '<b a="1">', tip="a & <b>", aria_label="\"'><script>", class_=None, x=1.5)
    assert made == (
        '<text aria-label="&#34;&#39;&gt;&lt;script&gt;" x="1.5"><title>a &amp; &lt;b&gt;</title>'
        "&lt;b a=&#34;1&#34;&gt;</text>"
    )


def test_a_line_goes_through_its_values() -> None:
    drawn = curves("x", "y", [1, 2, 3], [Series("loss", [4.0, math.nan, 2.0])], zero=True)
    (points,) = re.findall(r'<polyline points="([^"]*)"', drawn)
    (x1, y1), (x3, y3) = (map(float, point.split(",")) for point in points.split())
    # The axis stands at zero: heights over it are as the values.
    (axis,) = set(re.findall(r'y1="([\d.]+)" y2="\1" class="axis"', drawn))
    assert (float(axis) - y1) / (float(axis) - y3) == pytest.approx(2, rel=0.01)
    assert x1 < x3


def test_many_classes_get_small_cells_without_numbers() -> None:
    names = [f"class {n}" for n in range(60)]
    drawn = confusion(names, [[int(row == column) for column in names] for row in names])
    assert float(drawn.split('viewBox="0 0 ')[1].split()[0]) > 60 * 12
    assert 'class="count"' not in drawn
    assert "class 59, predicted class 59: 1 of 1 clips (100.0%)" in drawn


def colours(block: str) -> dict[str, tuple[float, ...]]:
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6})", block)
    return {name: tuple(int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)) for name, c in found}


def luminance(colour: tuple[float, ...]) -> float:
    """WCAG 2.2's relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("block", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_and_lines_stand_out(block: str) -> None:
    palette = colours(block)
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    pairs = [("text", "back"), ("text", "box"), ("text", "heat"), ("quiet", "back")]
    pairs += [("quiet", "box"), ("link", "back"), ("warn-text", "warn")]
    for front, back in pairs:
        assert contrast(palette[front], palette[back]) >= 4.5, (front, back)
    for name in ("line0", "line1", "line2", "line3"):
        assert contrast(palette[name], palette["back"]) >= 3, name
