"""What every kind of source gives to the build."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.audio.file_range import AudioFile
from shards.errors import UserError
from shards.manifest import sha256_of
from shards.sources.names import printable

if TYPE_CHECKING:
    from shards.build.options import BuildOptions


class Item(NamedTuple):
    """One source file (or image), and what is known of it before it is read.

    Attributes:
        name: how the user's list or folder calls it, printable; unique.
        file: its path, or the range of a tar that holds it; empty for an image.
        label: class index.
        split: "train", "val" or "test", or empty if it is still to be drawn.
        recording: what its clips were cut from.
        groups: one value for each of the source's group columns.
        together: items with the same value are never parted; empty if nothing is known of it.
    """

    name: str
    file: AudioFile
    label: int
    split: str
    recording: str
    groups: tuple[str, ...] = ()
    together: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source, read but for its samples.

    Attributes:
        kind: "audio" or "image".
        classes: class names in the order of their indices.
        groups: names of the group columns.
        unit: what the values of `together` are: "location", a column, or "file" if there are none.
        items: everything there is, in a fixed order.
        one_clip: every file is one clip, so no header has to be read to plan.
        lists: file name to SHA-256 of the lists read.
        fixed_classes: the classes are those of the task, whether or not there are clips of each.
        bad: (name, reason) of what cannot be used, beside the items.
        aside: reason to number of the files that were left aside.
        folders: kind to number of the folders that are not simply listed, such as hidden ones.
        empty: class folder without a file that is used to what is in it.
        notes: how the source was read, where that is not evident.
        split_warnings: what is wrong with it if it has no splits.
        together_hint: options that keep pieces of one recording together; empty if there are none.
        images: uint8 [items, ...] for images.
    """

    kind: str
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    unit: str
    items: list[Item]
    one_clip: bool = False
    lists: Mapping[str, str] = field(default_factory=dict)
    fixed_classes: bool = False
    bad: tuple[tuple[str, str], ...] = ()
    aside: Mapping[str, int] = field(default_factory=dict)
    folders: Mapping[str, int] = field(default_factory=dict)
    empty: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    split_warnings: tuple[str, ...] = ()
    together_hint: str = ""
    images: NDArray[np.uint8] | None = None


def folder_of(options: "BuildOptions") -> Path:
    """Returns `--source`.

    Raises:
        UserError: it is not a folder.
    """
    if not options.source.is_dir():
        raise UserError(f"--source {options.source} does not exist or is not a folder")
    return options.source


class Row(NamedTuple):
    """A row of a table: where it is, for messages, and its cells by column."""

    place: str
    cells: dict[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """A delimited text file: its columns, its rows as (line, cells by column), and its SHA-256."""

    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]
    sha256: str


def read_table(path: Path, columns: tuple[str, ...], delimiter: str | None = None) -> Table:
    """Reads a CSV or TSV with a header line.

    Args:
        path: the file.
        columns: those that must be there.
        delimiter: what parts the columns; found in the header line if None.

    Raises:
        UserError: if it is missing, no text, or lacks a column.
    """
    if not path.is_file():
        raise UserError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    head = text.partition("\n")[0]
    if delimiter is None:
        delimiter = max("\t,;|", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    names: tuple[str, ...] = ()
    try:
        for cells in reader:
            if not names:
                names = _header(path, cells, columns)
            elif cells:
                rows.append((reader.line_num, _row(path, reader.line_num, names, cells)))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    if not names:
        raise UserError(f"{path} is empty")
    if not rows:
        raise UserError(f"{path} has no rows")
    return Table(names, rows, sha256_of(data))


def _header(path: Path, cells: list[str], columns: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(cells)
    for name in columns:
        if names.count(name) != 1:
            number = "no column" if name not in names else "several columns"
            raise UserError(
                f"{path} has {number} {name!r}; its columns are {', '.join(map(printable, names))}"
            )
    return names


def _row(path: Path, line: int, names: tuple[str, ...], cells: list[str]) -> dict[str, str]:
    if any(cells[len(names) :]):
        raise UserError(
            f"{path}, line {line}: {len(cells)} cells, but the header names {len(names)} columns; "
            "put quotes around a cell that holds the separator"
        )
    filled = cells[: len(names)] + [""] * (len(names) - len(cells))
    return {name: cell.strip() for name, cell in zip(names, filled, strict=True)}
