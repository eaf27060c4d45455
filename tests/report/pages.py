"""Reads a page as a browser does: its tables, texts, figures and what it refers to."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """A page that was read.

    Attributes:
        tables: by label, the head and the rows, all as lists of texts.
        tips: what the tooltips of its figures say.
        labels: of its figures.
        attributes: every (tag, attribute, value).
        tags: every tag that was opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tips: list[str] = []
        self.labels: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == [], "every tag is closed"

    @property
    def text(self) -> str:
        """All that is to be read, on one line."""
        return " ".join("".join(self.pieces).split())

    def of(self, tag: str, attribute: str) -> list[str]:
        """Return the values of an attribute of these tags."""
        return [v for t, a, v in self.attributes if (t, a) == (tag, attribute)]

    def column(self, label: str, head: str) -> list[str]:
        """Return the cells of a column of a table."""
        first, *rows = self.tables[label]
        return [row[first.index(head)] for row in rows]

    def records(self, label: str) -> Iterator[dict[str, str]]:
        """Return the rows of a table by the names of its columns."""
        head, *rows = self.tables[label]
        return (dict(zip(head, row, strict=True)) for row in rows)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.pieces.append(" " if tag in ("br", "dd", "dt", "p", "td", "th") else "")
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables[str(given["aria-label"])] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "svg" and given.get("role") == "img":
            self.labels.append(str(given["aria-label"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.pieces.append(data)
        if "svg" in self.open and self.open[-1] == "title":
            self.tips.append(data)
        elif "th" in self.open or "td" in self.open:
            self.rows[-1][-1] = (self.rows[-1][-1] + data).strip()
