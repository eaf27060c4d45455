"""Tars in the WebDataset format: samples of an audio file, its label and its metadata.

Members are grouped to samples by the webdataset library itself. Only the headers of the tars and the
small members are read here; the audio is decoded later from its range of bytes.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from shards.audio.file_range import FileRange
from shards.audio.formats import DECODERS, decoder_of
from shards.errors import UserError
from shards.files.documents import DocumentError, parse_json
from shards.sources.names import printable
from shards.sources.registry import source
from shards.sources.source import Row, Source
from shards.sources.split_names import is_split_name
from shards.sources.table import Columns, from_rows, refuse_reserved
from shards.sources.walk import shown_ending

if TYPE_CHECKING:
    from shards.build.options import BuildOptions

# The label column that stands for the key: its first folder, or else what precedes its first "-".
KEY = "__key__"
# Where a label is looked for in JSON, unless a column is named.
LABELS = ("class", "scene_label", "scene", "label")
MOST_TARS = 100_000
# Bytes of a header with the extensions of pax and GNU, of a .json or .cls member, and of an audio
# member, which the webdataset library would hold in memory.
MOST_HEADER = 1 << 20
MOST_TEXT = 1 << 20
MOST_AUDIO = 1 << 31
# The library leaves these out: metadata of the tar itself.
_META = re.compile(r"__[^/]*__($|/)")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_NAME, _LABEL = "__name__", "label"


class _BadSample(Exception):  # noqa: N818 (it is no error of the program)
    """A sample that cannot be used; the text is the reason."""


@dataclass(frozen=True)
class _Sample:
    """Key of a sample, and its members by suffix."""

    key: str
    members: Mapping[str, FileRange]


@dataclass
class _Found:
    """What the tars hold."""

    rows: list[Row] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)  # of each row
    files: dict[str, FileRange] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)
    columns: set[str] = field(default_factory=set)


@source(
    "webdataset",
    help="tars such as 'x-{000000..000123}.tar', or a folder of them",
    options=("label_column", "split_column", "folds", "group_columns", "keep_together"),
    walks_folder=True,
)
def _from_options(options: "BuildOptions") -> Source:
    return read(options.source, Columns.of(options))


def read(pattern: Path, columns: Columns) -> Source:
    """Lists the samples of tars.

    A label is the text of the member `.cls`, or else in `.json` the first of `LABELS`, or else the
    first folder of the key; a label column is a key of the JSON, "cls", or `KEY`. Other columns are
    keys of the JSON, as those of a table. Without a split column, tars are splits if the name of
    each, or of its folder, begins with one: train-000.tar, val/000.tar.

    Args:
        pattern: tars with braces, several patterns with "::" between, or a folder.
        columns: as of a table.

    Raises:
        UserError: if there are no tars, or no samples that can be used.
    """
    refuse_reserved(columns.groups)
    tars = _expand(pattern)
    top = Path(os.path.commonpath([tar.absolute().parent for tar in tars]))
    found = _Found()
    for tar in tars:
        _add(tar, tar.absolute().relative_to(top).as_posix(), columns, found)
    if not found.rows:
        name, reason = found.bad[0] if found.bad else (str(pattern), "it has no audio files")
        raise UserError(f"--source {pattern} has no samples that can be used: {name}: {reason}")
    rows, notes = _with_tar_splits(found, columns)
    wanted = (columns.split, columns.together, *columns.groups)
    for name in filter(None, wanted):
        if name not in found.columns:
            raise UserError(f"--source {pattern}: no sample has {name!r} in its JSON")
    columns = replace(columns, filename=_NAME, label=_LABEL)
    listed = from_rows(rows, columns, f"--source {pattern}", found.files.__getitem__, _by_number)
    return replace(listed, bad=tuple(found.bad), aside=found.aside, notes=(*notes, *listed.notes))


def _by_number(label: str) -> tuple[int, str]:
    """Sorts class numbers by their value, and before names."""
    return (int(label) if label.isdecimal() and len(label) < 20 else 1 << 64), label


def _expand(pattern: Path) -> list[Path]:
    from braceexpand import braceexpand

    if pattern.is_dir():
        tars = sorted([*pattern.glob("*.tar"), *pattern.glob("*/*.tar")])
        if not tars:
            raise UserError(f"--source {pattern} has no .tar files")
        return tars
    try:
        for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", str(pattern)):
            if abs(int(last) - int(first)) >= MOST_TARS:
                raise UserError(f"--source {pattern} names more than {MOST_TARS:,} tars")
        names = (name for part in str(pattern).split("::") for name in braceexpand(part))
        tars = [Path(name) for name in islice(names, MOST_TARS + 1)]
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--source {pattern}: its braces cannot be expanded ({error})") from None
    if len(tars) > MOST_TARS:
        raise UserError(f"--source {pattern} names more than {MOST_TARS:,} tars")
    for tar in tars:
        if not tar.is_file():
            what = "is not a regular file" if tar.exists() else "does not exist"
            raise UserError(f"--source {pattern}: {tar} {what}")
    return tars


def _add(tar: Path, name: str, columns: Columns, found: _Found) -> None:
    """Adds the samples of one tar, which messages call `name`."""
    from webdataset.tariterators import base_plus_ext, group_by_keys

    member = ""

    def refuse(where: str, reason: str) -> None:
        found.bad.append((printable(f"{name}/{where}" if where else name), reason))

    def members(file: BinaryIO) -> Iterator[dict[str, str | FileRange]]:
        nonlocal member
        try:
            for member, place in _members(file, str(tar), found.aside):
                if base_plus_ext(member) == (None, None):
                    found.aside["without a key and an ending in a tar"] += 1
                    continue
                yield {"fname": member, "data": place, "__url__": name}
        except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError) as error:
            after = f" after {printable(member)}" if member else ""
            refuse("", f"damaged{after}: {' '.join(str(error).split())[:200]}")

    def twice(_: Exception) -> bool:
        refuse(member, "its name occurs twice in the sample")
        return True

    keys: set[str] = set()
    try:
        with tar.open("rb") as file:
            for grouped in group_by_keys(members(file), handler=twice):
                key = grouped["__key__"]
                ranges = {k: v for k, v in grouped.items() if not k.startswith("__")}
                try:
                    if key in keys:
                        raise _BadSample("its key occurs twice in the tar")
                    keys.add(key)
                    _add_sample(_Sample(key, ranges), name, columns, found)
                except _BadSample as reason:
                    refuse(key, str(reason))
    except OSError as error:
        refuse("", f"not readable: {error.strerror or error}")


class _Headers:
    """A file from which tarfile reads headers, and not more than one can have."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._read(size)


def _members(file: BinaryIO, path: str, aside: Counter[str]) -> Iterator[tuple[str, FileRange]]:
    """Yields the name and range of every member that the library would read; counts the others.

    Raises:
        tarfile.TarError, OSError, ValueError, RecursionError, OverflowError: the tar is damaged.
    """
    size = os.fstat(file.fileno()).st_size
    if os.pread(file.fileno(), 6, 0).startswith(_COMPRESSED):
        raise tarfile.ReadError("it is compressed; unpack it, as with gunzip")
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        before = -1
        while (member := tar.next()) is not None:
            # tarfile would keep them all.
            tar.members = []
            if member.size < 0 or tar.offset <= before:
                raise tarfile.ReadError(f"{printable(member.name)} has an impossible size")
            before = tar.offset
            if member.isdir() or _META.match(member.name):
                continue
            if not member.isreg() or member.sparse is not None:
                aside["links, sparse files and devices in a tar"] += 1
                continue
            if member.offset_data + member.size > size:
                there = max(0, size - member.offset_data)
                raise tarfile.ReadError(
                    f"cut short: {there} of {member.size} bytes of {printable(member.name)} are there"
                )
            yield member.name, FileRange(path, member.offset_data, member.size)
        # tarfile takes the first thing that is no header for the end.
        if os.pread(file.fileno(), 512, tar.offset) != bytes(512):
            raise tarfile.ReadError(f"no header and no end of the archive at byte {tar.offset}")


def _add_sample(sample: _Sample, tar: str, columns: Columns, found: _Found) -> None:
    """Adds a sample to the rows.

    Raises:
        _BadSample: it has several audio files, a bad one of its members, or no label.
    """
    audio = []
    for suffix in sample.members:
        if suffix in ("json", "cls"):
            continue
        if decoder_of(f".{suffix}") == "libsndfile":
            audio.append(suffix)
        else:
            ending = suffix.rpartition(".")[2]
            why = "not read from tars" if ending in DECODERS else "not audio"
            found.aside[f"{why} ({shown_ending(ending)})"] += 1
    if not audio:
        found.aside["samples without audio"] += 1
        return
    if len(audio) > 1:
        raise _BadSample(f"it has several audio files: {printable(', '.join(sorted(audio)))}")
    place = sample.members[audio[0]]
    if place.size > MOST_AUDIO:
        raise _BadSample(f"its audio has {place.size:,} bytes, more than {MOST_AUDIO:,}")
    document = _document(sample)
    name = f"{tar}/{sample.key}.{audio[0]}"
    label = _label(sample, document, columns)
    if not label:
        raise _BadSample(
            "it has no label: no .cls, none of "
            f"{', '.join(LABELS)} in its .json, and no folder in its key"
            if columns.label == _LABEL
            else f"it has no label: {columns.label!r} is missing or blank"
        )
    wanted = {"split", columns.split, columns.together, *columns.groups} - {None}
    cells = {column: _cell(document, column) for column in wanted if column is not None}
    found.columns |= document.keys() & cells.keys()
    found.rows.append(Row(printable(name), {**cells, _LABEL: label, _NAME: name}))
    found.tars.append(tar)
    found.files[name] = place


def _label(sample: _Sample, document: Mapping[str, object], columns: Columns) -> str:
    folder = sample.key.partition("/")[0] if "/" in sample.key else ""
    if columns.label == KEY:
        return folder or sample.key.partition("-")[0]
    if columns.label != _LABEL and columns.label != "cls":
        return _cell(document, columns.label)
    if "cls" in sample.members:
        return _text(sample.members["cls"], ".cls").strip()
    if columns.label == "cls":
        return ""
    return next((cell for name in LABELS if (cell := _cell(document, name))), folder)


def _document(sample: _Sample) -> dict[str, object]:
    if "json" not in sample.members:
        return {}
    try:
        return parse_json(_text(sample.members["json"], ".json"), dict[str, object], nan=True)
    except DocumentError as error:
        raise _BadSample(f"its .json {error}") from None


def _cell(document: Mapping[str, object], name: str) -> str:
    value = document.get(name)
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise _BadSample(f"{name!r} in its .json is neither text nor a number")
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _text(place: FileRange, suffix: str) -> str:
    if place.size > MOST_TEXT:
        raise _BadSample(f"its {suffix} has {place.size:,} bytes, more than {MOST_TEXT:,}")
    with Path(place.path).open("rb") as file:
        data = os.pread(file.fileno(), place.size, place.start)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _BadSample(f"its {suffix} is not UTF-8 text") from None


def _with_tar_splits(found: _Found, columns: Columns) -> tuple[Sequence[Row], tuple[str, ...]]:
    """Returns the rows with the splits that the names of the tars say, if nothing else says them."""
    if columns.split or "split" in found.columns:
        return found.rows, ()
    words = [_split_word(tar) for tar in found.tars]
    if not all(words) or len(set(words)) < 2:
        rows = [Row(place, _without(cells, "split")) for place, cells in found.rows]
        return rows, ()
    rows = [
        Row(place, {**cells, "split": word})
        for (place, cells), word in zip(found.rows, words, strict=True)
    ]
    return rows, ("the splits are those that the tars are named after",)


def _without(cells: Mapping[str, str], name: str) -> dict[str, str]:
    return {column: cell for column, cell in cells.items() if column != name}


def _split_word(tar: str) -> str:
    """Returns the word for a split at the beginning of a tar's name or of its folder's, or ""."""
    for name in reversed(tar.split("/")[-2:]):
        word = re.match(r"[A-Za-z]*", name)
        if word and is_split_name(word[0]):
            return word[0].lower()
    return ""
