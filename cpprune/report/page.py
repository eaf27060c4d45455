"""An HTML page in one file: documents with sections of text, facts, figures, tables and clips."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from cpprune.report.evaluation import Mistake


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number to sort by (None: sort by the text)."""

    text: str | Markup
    value: float | None = None


def count(number: float) -> Cell:
    """Return a cell with a whole number."""
    return Cell(f"{number:,.0f}", number)


def decimal(number: float, digits: int = 4) -> Cell:
    """Return a cell with a number of `digits` decimals; a dash if it is not finite."""
    if not math.isfinite(number):
        return Cell("–")
    return Cell(f"{number:.{digits}f}", number)


@dataclass(frozen=True)
class Table:
    """A sortable table. Its first column names the rows."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: str = "table"

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers, which are aligned to the right."""
        return [
            any(cell.value is not None for cell in column)
            for column in zip(*self.rows, strict=True)
        ]


@dataclass(frozen=True)
class Figure:
    """A chart with a caption, and optionally a table of its values."""

    drawing: Markup
    caption: str
    table: Table | None = None
    kind: str = "figure"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    items: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Text:
    """A paragraph; with `code`, a command line."""

    text: str
    code: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Clips:
    """Misclassified clips, as picture and sound."""

    clips: Sequence[Mistake]
    kind: str = "clips"


Block = Table | Figure | Facts | Text | Clips


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report of a run, or a comparison.

    Attributes:
        title: at the top.
        subtitle: a sentence below it.
        tiles: names and values of the main results.
        notes: sentences on what is missing or to be kept in mind.
        sections: in order.
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
        documents: in order.
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
    context: dict[str, object] = {
        "title": title,
        "documents": documents,
        "style": Markup(_resource("style.css")),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "script_hash": digest,
    }
    return environment.get_template("page.html").render(context)


def _resource(name: str) -> str:
    return files("cpprune.report").joinpath("templates", name).read_text(encoding="utf-8")
