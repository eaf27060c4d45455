"""A CSV or TSV that names files and their labels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError
from shards.manifest import INDEX_TYPES, LONGEST_TEXT, SPLITS
from shards.sources.names import printable
from shards.sources.source import Item, Source, Table, read_table
from shards.sources.split_names import meaning, split_names

# What an index or the JSON of a clip has itself.
RESERVED = {*INDEX_TYPES, "class"} - {"recording"}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the table mean what; `split` None: none, the splits are drawn.

    `folds` are (split, value of the split column); `together` is the column whose values never part.
    """

    filename: str = "filename"
    label: str = "label"
    split: str | None = None
    folds: tuple[tuple[str, str], ...] = ()
    groups: tuple[str, ...] = ()
    together: str | None = None


def read(path: Path, columns: Columns, audio_root: Path | None) -> Source:
    """Reads a table with a header line.

    The column `together`, else a group column named `location`, or else `recording`, is the unit that
    never parts; without any, or where its cell is blank, it is the file.

    Args:
        path: the table; commas, tabs, semicolons or bars are told from its header.
        columns: which of its columns to use. A column named `split` is used without being named.
        audio_root: what file names are relative to; the table's own folder if None.

    Raises:
        InputError: if a column is missing or a row cannot be used.
    """
    _refuse_reserved(columns.groups)
    needed = [columns.filename, columns.label, columns.split, columns.together, *columns.groups]
    table = read_table(path, tuple(name for name in needed if name))
    unit = columns.together or next(
        (name for name in ("location", "recording") if name in columns.groups), None
    )
    splits, notes = _splits(path, table, columns)
    root = audio_root or path.parent
    items: list[Item] = []
    classes: dict[str, int] = {}
    seen: set[str] = set()
    for (line, row), split in zip(table.rows, splits, strict=True):
        name, label = row[columns.filename], row[columns.label]
        if not name or not label:
            raise InputError(f"{path}, line {line}: no {columns.filename} or no {columns.label}")
        used = (columns.label, *columns.groups)
        if long := next((column for column in used if len(row[column]) > LONGEST_TEXT), None):
            raise InputError(
                f"{path}, line {line}: {long} has more than {LONGEST_TEXT:,} letters; shorten it"
            )
        if "\0" in name:
            raise InputError(f"{path}, line {line}: {printable(name)} is no file name")
        if name in seen:
            raise InputError(f"{path}, line {line}: {printable(name)} is listed twice")
        seen.add(name)
        known = row["recording"] if "recording" in columns.groups else ""
        items.append(
            Item(
                name=printable(name),
                file=str(root / name),
                label=classes.setdefault(printable(label), len(classes)),
                split=split,
                recording=printable(known or name),
                groups=tuple(printable(row[group]) for group in _others(columns.groups)),
                together=printable(row[unit]) if unit else "",
            )
        )
    names = tuple(sorted(classes))
    index_of = {classes[name]: label for label, name in enumerate(names)}
    return Source(
        kind="audio",
        classes=names,
        groups=_others(columns.groups),
        unit=unit or "file",
        items=[item._replace(label=index_of[item.label]) for item in items],
        lists={printable(path.name): table.sha256},
        notes=notes,
    )


def _refuse_reserved(groups: Sequence[str]) -> None:
    for name in groups:
        if name in RESERVED:
            raise InputError(
                f"--group-columns: {name!r} is a name that a dataset needs itself; rename the column"
            )
        if groups.count(name) > 1:
            raise InputError(f"--group-columns names {name!r} twice")


def _others(groups: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in groups if name != "recording")


def _splits(path: Path, table: Table, columns: Columns) -> tuple[list[str], tuple[str, ...]]:
    """Returns the split of every row, "" if it is to be drawn, and how the column was read."""
    name = columns.split or ("split" if "split" in table.columns else None)
    if name is None:
        if columns.folds:
            raise InputError(f"--folds: {path} has no column 'split'; name one with --split-column")
        fold = "the column fold is not used; for its folds: --split-column fold --folds test=…"
        return [""] * len(table.rows), (fold,) if "fold" in table.columns else ()
    cells = [row[name] for _, row in table.rows]
    if columns.folds:
        meant = _by_fold(f"{path}, column {name!r}", set(cells), columns.folds)
    else:
        lower = {cell.lower() for cell in cells}
        words = split_names(lower, f"{path}, column {name!r}")
        meant = {cell: words[cell.lower()] for cell in set(cells) if cell.lower() in words}
    for (line, row), cell in zip(table.rows, cells, strict=True):
        if cell not in meant:
            raise InputError(
                f"{path}, line {line}: {printable(row[columns.filename])} has the split "
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
            raise InputError(f"--folds: {where} has no {fold!r}; it has {listed}")
        if meant.setdefault(fold, split) != split:
            raise InputError(f"--folds: {fold!r} is both {meant[fold]} and {split}")
    rest = sorted(cells - meant.keys())
    if "" in rest:
        raise InputError(f"--folds: {where} is blank in some rows; fill them")
    if rest and "train" in meant.values():
        raise InputError(f"--folds says what train is, but not what {rest[0]!r} is; name it too")
    return meant | dict.fromkeys(rest, "train")
