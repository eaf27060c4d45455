"""A page: sections of paragraphs, facts, figures, tables and clips, in one file without any other."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from cpprune.report.measured import Mistake


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and the number it is sorted by (None: by its text)."""

    text: str | Markup
    value: float | None = None


def count(number: float) -> Cell:
    """Return a cell with a whole number."""
    return Cell(f"{number:,.0f}", number)


def fraction(number: float, digits: int = 4) -> Cell:
    """Return a cell with a number of so many decimals; a dash for one that is not finite."""
    if not math.isfinite(number):
        return Cell("–")
    return Cell(f"{number:.{digits}f}", number)


@dataclass(frozen=True)
class Table:
    """A table that can be sorted. Its first column names the rows."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing with a caption, and the table of what it shows for those who would rather read."""

    drawing: Markup
    caption: str
    table: Table | None = None
    kind: str = "figure"


@dataclass(frozen=True)
class Facts:
    """Names with values."""

    items: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Text:
    """A paragraph; with `code` what is to be typed."""

    text: str
    code: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Clips:
    """Clips to look at and listen to."""

    clips: Sequence[Mistake]
    kind: str = "clips"


Block = Table | Figure | Facts | Text | Clips


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """All there is to say of a run, or of a comparison.

    Attributes:
        title: at the top.
        subtitle: a sentence under it.
        tiles: names and values of the most important figures.
        notes: sentences on what is missing or has to be known.
        sections: the rest.
    """

    title: str
    subtitle: str
    tiles: Sequence[tuple[str, str]]
    notes: Sequence[str]
    sections: Sequence[Section] = field(default_factory=list)


def render(title: str, documents: Sequence[Document]) -> str:
    """Return a page of one or more documents.

    Args:
        title: of the window.
        documents: one after the other.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cpprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _resource("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    context: dict[str, Any] = {
        "title": title,
        "documents": documents,
        "style": Markup(_resource("style.css")),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "script_hash": digest,
    }
    return environment.get_template("page.html").render(context)


def _resource(name: str) -> str:
    return files("cpprune.report").joinpath("templates", name).read_text(encoding="utf-8")
