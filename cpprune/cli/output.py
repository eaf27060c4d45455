"""How commands print: results on standard output, messages on standard error, tables as plain text."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def message(text: str) -> None:
    """Print a message on standard error."""
    print(text, file=sys.stderr, flush=True)


def quantised_text(precision: str) -> str:
    """Return what a message says of models of this precision: nothing unless one is int8.

    Args:
        precision: from `cpprune.export.classifier.precision`.
    """
    if "int8" not in precision:
        return ""
    return "quantised (int8)" if precision == "int8" else f"quantised in part ({precision})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as plain text: no colours, no frame, nothing shortened to a terminal's width.

    The first column is aligned to the left, and so are others that do not hold numbers.

    Args:
        head: names of the columns.
        rows: their cells.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for number, (name, *cells) in enumerate(zip(head, *rows, strict=True)):
        numbers = number > 0 and all(cell[:1] in "0123456789+-–" for cell in cells)
        shown.add_column(Text(name), justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*map(Text, row))
    console = Console(width=1 << 16, color_system=None)
    with console.capture() as captured:
        console.print(shown)
    first, *others = (line.rstrip() for line in captured.get().splitlines())
    return "\n".join([first, "-" * max(map(len, (first, *others))), *others])
