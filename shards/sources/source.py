"""What every kind of source gives to the build."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.manifest import sha256_of


@dataclass(frozen=True, slots=True)
class Item:
    """One source file (or image), and what is known of it before it is read.

    Attributes:
        name: how the user's list or folder calls it; unique.
        file: where it is; empty for an image.
        label: class index.
        split: "train", "val" or "test", or empty if it is still to be drawn.
        recording: what its clips were cut from.
        groups: one value for each of the source's group columns.
    """

    name: str
    file: str
    label: int
    split: str
    recording: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source, read but for its samples.

    Attributes:
        kind: "audio" or "image".
        classes: class names in the order of their indices.
        groups: names of the group columns.
        unit: the column whose values must not part: "recording" or "location".
        items: everything there is, in a fixed order.
        one_clip: every file is one clip, so no header has to be read to plan.
        lists: file name to SHA-256 of the lists read.
        ignored: files that were left aside.
        images: uint8 [items, ...] for images.
    """

    kind: str
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    unit: str
    items: list[Item]
    one_clip: bool = False
    lists: Mapping[str, str] = field(default_factory=dict)
    ignored: int = 0
    images: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A delimited text file: its columns, its rows as dicts, and its SHA-256."""

    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    sha256: str


def read_table(path: Path, columns: tuple[str, ...], delimiter: str | None = None) -> Table:
    """Reads a CSV or TSV with a header line.

    Args:
        path: the file.
        columns: those that must be there.
        delimiter: what parts the columns; found in the header line if None.

    Raises:
        InputError: if it is missing, no text, or lacks a column.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    data = path.read_bytes()
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    head = lines[0] if lines else ""
    if delimiter is None:
        delimiter = max("\t,;|", key=head.count)
    reader: Any = csv.DictReader(lines, delimiter=delimiter, restkey="", restval="")
    names = tuple(reader.fieldnames or ())
    for name in columns:
        if name not in names:
            raise InputError(
                f"{path} has no column {name!r}; its columns are {', '.join(names) or 'none'}"
            )
    rows = [{name: (row[name] or "").strip() for name in names} for row in reader]
    if not rows:
        raise InputError(f"{path} has no rows")
    return Table(names, rows, sha256_of(data))
