"""A CSV or TSV that names files and their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError
from shards.manifest import INDEX_TYPES, SPLITS
from shards.sources.source import Item, Source, read_table


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the table mean what; `split` None: none, the splits are drawn."""

    filename: str = "filename"
    label: str = "label"
    split: str | None = None
    groups: tuple[str, ...] = ()


def read(path: Path, columns: Columns, audio_root: Path | None) -> Source:
    """Reads a table with a header line.

    A group column named `location`, or else `recording`, is the unit that never parts; without
    either it is the file.

    Args:
        path: the table; commas, tabs, semicolons or bars are told from its header.
        columns: which of its columns to use. A column named `split` is used without being named.
        audio_root: what file names are relative to; the table's own folder if None.

    Raises:
        InputError: if a column is missing or a row cannot be used.
    """
    for name in columns.groups:
        if name in INDEX_TYPES and name != "recording":
            raise InputError(f"--group-columns: {name!r} is a name the index needs itself")
    needed = (columns.filename, columns.label, *columns.groups)
    table = read_table(path, needed + ((columns.split,) if columns.split else ()))
    split_column = columns.split or ("split" if "split" in table.columns else None)
    root = audio_root or path.parent
    classes = tuple(sorted({row[columns.label] for row in table.rows}))
    index_of = {name: label for label, name in enumerate(classes)}
    groups = tuple(name for name in columns.groups if name != "recording")
    items: list[Item] = []
    seen: set[str] = set()
    for line, row in enumerate(table.rows, start=2):
        name = row[columns.filename]
        if not name or not row[columns.label]:
            raise InputError(f"{path}, line {line}: no {columns.filename} or no {columns.label}")
        if name in seen:
            raise InputError(f"{path}, line {line}: {name} is listed twice")
        seen.add(name)
        split = row[split_column] if split_column else ""
        if split_column and split not in SPLITS:
            raise InputError(
                f"{path}, line {line}: {name} has the split {split!r}; use {', '.join(SPLITS)}"
            )
        items.append(
            Item(
                name=name,
                file=str(root / name),
                label=index_of[row[columns.label]],
                split=split,
                recording=row["recording"] if "recording" in columns.groups else name,
                groups=tuple(row[group] for group in groups),
            )
        )
    return Source(
        kind="audio",
        classes=classes,
        groups=groups,
        unit=_unit(columns.groups),
        items=items,
        lists={path.name: table.sha256},
    )


def _unit(groups: Sequence[str]) -> str:
    return "location" if "location" in groups else "recording"
