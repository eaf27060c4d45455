"""A CSV or TSV that names files and their labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shards.audio.file_range import AudioFile
from shards.errors import UserError
from shards.manifest import INDEX_TYPES, LONGEST_TEXT, SPLITS
from shards.sources.names import printable
from shards.sources.registry import source
from shards.sources.source import Item, Row, Source, read_table
from shards.sources.split_names import meaning, split_names

if TYPE_CHECKING:
    from shards.build.options import BuildOptions

# What an index or the JSON of a clip has itself.
RESERVED = {*INDEX_TYPES, "class"} - {"recording"}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The meaning of columns; without a column `split`, or one named so, the splits are drawn.

    `folds` are (split, value of the split column). Clips with the same value of `together` are never
    divided among splits.
    """

    filename: str = "filename"
    label: str = "label"
    split: str | None = None
    folds: tuple[tuple[str, str], ...] = ()
    groups: tuple[str, ...] = ()
    together: str | None = None

    @classmethod
    def of(cls, options: "BuildOptions") -> "Columns":
        """Returns the columns that the options of a build name."""
        return cls(
            filename=options.filename_column,
            label=options.label_column,
            split=options.split_column,
            folds=options.folds,
            groups=options.group_columns,
            together=options.keep_together,
        )

    def named(self) -> tuple[str, ...]:
        """Returns the columns that have to be there."""
        names = (self.filename, self.label, self.split, self.together, *self.groups)
        return tuple(name for name in names if name)


@source(
    "table",
    help="a CSV or TSV",
    options=(
        *("filename_column", "label_column", "split_column", "folds", "group_columns"),
        *("audio_root", "keep_together"),
    ),
)
def _from_options(options: "BuildOptions") -> Source:
    return read(options.source, Columns.of(options), options.audio_root)


def read(path: Path, columns: Columns, audio_root: Path | None) -> Source:
    """Reads a table with a header line.

    The column `together`, else a group column named `location`, or else `recording`, is the unit that
    never parts; without any, or where its cell is blank, it is the file.

    Args:
        path: the table; commas, tabs, semicolons or bars are told from its header.
        columns: which of its columns to use. A column named `split` is used without being named.
        audio_root: what file names are relative to; the table's own folder if None.

    Raises:
        UserError: if a column is missing or a row cannot be used.
    """
    refuse_reserved(columns.groups)
    table = read_table(path, columns.named())
    rows = [Row(f"{path}, line {line}", cells) for line, cells in table.rows]
    root = audio_root or path.parent
    found = from_rows(rows, columns, str(path), lambda name: str(root / name))
    return replace(found, lists={printable(path.name): table.sha256})


def from_rows(
    rows: Sequence[Row],
    columns: Columns,
    where: str,
    file_of: Callable[[str], AudioFile],
    class_order: Callable[[str], str | tuple[int, str]] = str,
) -> Source:
    """Returns the source that rows of cells describe, whatever they were read from.

    Args:
        rows: one for each file, all with the same columns; at least one.
        columns: which of them to use.
        where: they were read from, for messages.
        file_of: the file that a cell of the filename column names.
        class_order: the key by which class names are sorted.

    Raises:
        UserError: if a row cannot be used.
    """
    unit = columns.together or next(
        (name for name in ("location", "recording") if name in columns.groups), None
    )
    splits, notes = _splits(where, rows, columns)
    items: list[Item] = []
    seen: set[str] = set()
    for (place, cells), split in zip(rows, splits, strict=True):
        name, label = cells[columns.filename], cells[columns.label]
        if not name or not label:
            raise UserError(f"{place}: no {columns.filename} or no {columns.label}")
        used = (columns.label, *columns.groups)
        if long := next((column for column in used if len(cells[column]) > LONGEST_TEXT), None):
            raise UserError(f"{place}: {long} has more than {LONGEST_TEXT:,} letters; shorten it")
        if "\0" in name:
            raise UserError(f"{place}: {printable(name)} is no file name")
        if name in seen:
            raise UserError(f"{place}: {printable(name)} is listed twice")
        seen.add(name)
        known = cells["recording"] if "recording" in columns.groups else ""
        items.append(
            Item(
                name=printable(name),
                file=file_of(name),
                label=-1,
                split=split,
                recording=printable(known or name),
                groups=tuple(printable(cells[group]) for group in _others(columns.groups)),
                together=printable(cells[unit]) if unit else "",
            )
        )
    labels = [printable(cells[columns.label]) for _, cells in rows]
    classes = sorted(set(labels), key=class_order)
    number = {name: index for index, name in enumerate(classes)}
    return Source(
        kind="audio",
        classes=tuple(classes),
        groups=_others(columns.groups),
        unit=unit or "file",
        items=[
            item._replace(label=number[label]) for item, label in zip(items, labels, strict=True)
        ],
        notes=notes,
        together_hint="--keep-together and a column that names the recording",
    )


def refuse_reserved(groups: Sequence[str]) -> None:
    """Refuses group columns that every dataset has, and those named twice."""
    for name in groups:
        if name in RESERVED:
            raise UserError(
                f"--group-columns: {name!r} is a name that a dataset needs itself; rename the column"
            )
        if groups.count(name) > 1:
            raise UserError(f"--group-columns names {name!r} twice")


def _others(groups: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in groups if name != "recording")


def _splits(where: str, rows: Sequence[Row], columns: Columns) -> tuple[list[str], tuple[str, ...]]:
    """Returns the split of every row, "" if it is to be drawn, and how the column was read."""
    there = rows[0].cells
    name = columns.split or ("split" if "split" in there else None)
    if name is None:
        if columns.folds:
            raise UserError(f"--folds: {where} has no column 'split'; name one with --split-column")
        fold = "the column fold is not used; for its folds: --split-column fold --folds test=…"
        return [""] * len(rows), (fold,) if "fold" in there else ()
    cells = [row.cells[name] for row in rows]
    if columns.folds:
        meant = _by_fold(f"{where}, column {name!r}", set(cells), columns.folds)
    else:
        lower = {cell.lower() for cell in cells}
        words = split_names(lower, f"{where}, column {name!r}")
        meant = {cell: words[cell.lower()] for cell in set(cells) if cell.lower() in words}
    for (place, row), cell in zip(rows, cells, strict=True):
        if cell not in meant:
            raise UserError(
                f"{place}: {printable(row[columns.filename])} has the split "
                f"{printable(cell)!r}; use {', '.join(SPLITS)}{_fold_hint(cells)}"
            )
    return [meant[cell] for cell in cells], meaning(f"column {name}", meant)


def _fold_hint(cells: Iterable[str]) -> str:
    folds = sorted({cell for cell in cells if cell.isdecimal()})
    return f", or say which fold is which: --folds test={folds[-1]}" if folds else ""


def _by_fold(where: str, cells: set[str], folds: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Returns the split of every value; what is not named is for training."""
    meant: dict[str, str] = {}
    for split, fold in folds:
        if fold not in cells:
            listed = ", ".join(printable(cell) for cell in sorted(cells)[:20])
            raise UserError(f"--folds: {where} has no {fold!r}; it has {listed}")
        if meant.setdefault(fold, split) != split:
            raise UserError(f"--folds: {fold!r} is both {meant[fold]} and {split}")
    rest = sorted(cells - meant.keys())
    if "" in rest:
        raise UserError(f"--folds: {where} is blank in some rows; fill them")
    if rest and "train" in meant.values():
        raise UserError(f"--folds says what train is, but not what {rest[0]!r} is; name it too")
    return meant | dict.fromkeys(rest, "train")
