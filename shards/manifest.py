"""Format of a dataset folder: `dataset.json` and `index.parquet`."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, NotRequired, TypedDict

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from shards.errors import UserError
from shards.files.documents import DocumentError, parse_json, read_bytes, typed

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "cpprune-shards/1"
MANIFEST_NAME = "dataset.json"
INDEX_NAME = "index.parquet"
REJECTED_NAME = "rejected.csv"
WORK_NAME = ".build"
# Largest index, in all and per row, where the manifest of an older version does not give its size.
MAX_INDEX = 1 << 20
MAX_INDEX_ROW = 4096
SPLITS = ("train", "val", "test")

# Columns of the index, except groups, and their types on disk.
INDEX_TYPES: Mapping[str, str] = {
    "key": "string",
    "split": "string",
    "shard": "int32",
    "offset": "int64",
    "size": "int32",
    "crc32": "uint32",
    "record_offset": "int64",
    "record_size": "int32",
    "record_crc32": "uint32",
    "label": "int32",
    "recording": "string",
}


Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Size = Annotated[int, Meta(ge=0, le=1 << 50)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}$")]
MAX_MANIFEST = 64 << 20  # bytes; the manifest of 100,000 shards has 25 MB
MAX_VALUES = 1 << 26  # of one sample
LONGEST_TEXT = 4096  # characters of one cell of the index


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Tar file: name in the folder, split, number of samples, size in bytes, and SHA-256."""

    name: FileName
    split: str
    count: Count
    bytes: Size
    sha256: Digest


class SplitCounts(TypedDict):
    """Number of samples of a split, in all and of each class."""

    count: Count
    classes: dict[str, Count]


class IndexFile(TypedDict):
    """Index file: name, SHA-256 and number of rows."""

    name: Annotated[str, Meta(pattern=r"^index\.parquet$")]
    sha256: Digest
    rows: Count
    bytes: NotRequired[Size]  # missing in older datasets


class RejectedFile(TypedDict):
    """List of rejected files: name, SHA-256 and number of lines."""

    name: Annotated[str, Meta(pattern=r"^rejected\.csv$")]
    sha256: Digest
    count: Count


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of `dataset.json`; `sha256`, over all other fields, is the dataset's fingerprint."""

    kind: Annotated[str, Meta(pattern="^(audio|image)$")]
    classes: Annotated[tuple[str, ...], Meta(min_length=1)]
    sample_rate: Annotated[int, Meta(ge=1, le=1 << 30)] | None
    shape: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1, max_length=3)]
    dtype: Annotated[str, Meta(pattern="^(int16|uint8)$")]
    encoding: Annotated[str, Meta(pattern="^(wav|flac|npy)$")]
    splits: dict[Annotated[str, Meta(pattern="^(train|val|test)$")], SplitCounts]
    groups: tuple[str, ...]
    shards: tuple[Shard, ...]
    index: IndexFile
    rejected: RejectedFile | None
    source: dict[str, object]
    sha256: str = ""

    def sealed(self) -> "Manifest":
        """Returns a copy with `sha256` computed over all other fields."""
        return replace(self, sha256=sha256_of(canonical(self._document())))

    def to_bytes(self) -> bytes:
        """Returns the bytes of `dataset.json`."""
        return canonical({**self._document(), "sha256": self.sha256})

    def _document(self) -> dict[str, object]:
        document = {"format": FORMAT, **asdict(self)}
        del document["sha256"]
        return document


def canonical(document: Mapping[str, object]) -> bytes:
    """Returns the canonical JSON of a document: sorted keys, two spaces of indent, a final newline."""
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def sha256_of(data: bytes) -> str:
    """Returns the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path, max_bytes: int | None = None) -> str:
    """Returns the hexadecimal SHA-256 of a file; "" if it has more than `max_bytes`."""
    with path.open("rb") as file:
        if max_bytes is not None and os.fstat(file.fileno()).st_size > max_bytes:
            return ""  # a sparse file may claim any size
        return hashlib.file_digest(file, "sha256").hexdigest()


def max_index_bytes(index: IndexFile) -> int:
    """Returns the largest size in bytes that an index may have according to its manifest."""
    return index.get("bytes", MAX_INDEX + MAX_INDEX_ROW * index["rows"])


def parse_manifest(data: bytes) -> Manifest:
    """Parses the bytes of a `dataset.json`.

    Raises:
        ValueError: they are not a valid manifest, or have changed; the message says why.
    """
    try:
        document = parse_json(data, dict[str, object])
    except DocumentError as error:
        raise ValueError(f"it {error}") from None
    if "format" not in document:
        raise ValueError("it is not the manifest of a dataset")
    if document["format"] != FORMAT:
        raise ValueError(f"its format is {document['format']!r}, this version reads {FORMAT!r}")
    fields = {name: value for name, value in document.items() if name != "format"}
    unknown = sorted(fields.keys() - Manifest.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"it has an unknown field {unknown[0]!r}")
    try:
        manifest = typed(fields, Manifest)
    except DocumentError as error:
        raise ValueError(f"its {error}") from None
    splits = {name: manifest.splits[name] for name in SPLITS if name in manifest.splits}
    manifest = replace(manifest, splits=splits)
    if manifest.sealed().to_bytes() != data:
        raise ValueError("its sha256 does not match its contents")
    _check_consistency(manifest)
    return manifest


def _check_consistency(manifest: Manifest) -> None:
    """Raises ValueError if parts of a manifest contradict each other, as only in forged ones."""
    audio = manifest.kind == "audio"
    shards, splits = manifest.shards, manifest.splits
    numbers = [SPLITS.index(shard.split) for shard in shards if shard.split in SPLITS]
    of_shards = Counter[str]()
    for shard in shards:
        of_shards[shard.split] += shard.count
    reserved = set(INDEX_TYPES)
    checks = (
        ("sample_rate", (manifest.sample_rate is not None) == audio),
        ("shape", len(manifest.shape) == (1 if audio else 3)),
        ("shape", math.prod(manifest.shape) <= MAX_VALUES),
        ("dtype", manifest.dtype == ("int16" if audio else "uint8")),
        ("encoding", (manifest.encoding == "npy") != audio),
        ("classes", len(set(manifest.classes)) == len(manifest.classes)),
        ("groups", len({*manifest.groups, *reserved}) == len(manifest.groups) + len(reserved)),
        ("shards", len({shard.name for shard in shards}) == len(shards)),
        ("shards", {shard.split for shard in shards} <= splits.keys()),
        ("shards", numbers == sorted(numbers)),
        ("splits", all(of_shards[name] == split["count"] for name, split in splits.items())),
        (
            "splits",
            all(split["classes"].keys() == set(manifest.classes) for split in splits.values()),
        ),
        ("splits", all(sum(s["classes"].values()) == s["count"] for s in splits.values())),
        ("index", manifest.index["rows"] == of_shards.total()),
        # Each record has at least two tar headers of 512 bytes.
        ("shards", all(1024 * shard.count <= shard.bytes for shard in shards)),
    )
    wrong = [name for name, holds in checks if not holds]
    if wrong:
        raise ValueError(f"its {wrong[0]} contradict the rest of it, or are impossible")


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks `dataset.json` in a dataset folder.

    Raises:
        UserError: the folder is not a finished dataset, or the file has changed.
    """
    if not folder.is_dir():
        raise UserError(f"no dataset at {folder}: the folder does not exist")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        why = (
            "its build did not finish: run the same `cpprune shards build` again"
            if (folder / WORK_NAME).is_dir()
            else f"it has no {MANIFEST_NAME}; make one with `cpprune shards build`"
        )
        raise UserError(f"{folder} is not a dataset: {why}")
    try:
        return parse_manifest(read_bytes(path, MAX_MANIFEST))
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def write_index(path: Path, columns: Mapping[str, Sequence[object]], groups: Sequence[str]) -> None:
    """Writes `index.parquet`; equal columns give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {**INDEX_TYPES, **dict.fromkeys(groups, "string")}
    arrays = {
        name: pa.array(columns[name], type=pa.type_for_alias(kind)) for name, kind in types.items()
    }
    table = pa.table(arrays)
    pq.write_table(table, path, compression="zstd", row_group_size=1 << 20, store_schema=False)


class Index(NamedTuple):
    """Columns of an index by name: integers as numpy arrays, strings as pyarrow arrays."""

    numbers: dict[str, NDArray[np.integer]]
    texts: "dict[str, pa.Array]"


def read_index(path: Path, columns: Sequence[str], encoded: Sequence[str] = ()) -> Index:
    """Reads columns of `index.parquet`.

    Args:
        path: the index file.
        columns: names of the columns to read.
        encoded: those that stay dictionary-encoded, to save memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(
        path, columns=list(columns), read_dictionary=list(encoded), use_threads=False
    )
    index = Index({}, {})
    for name in columns:
        column = table.column(name)
        if pa.types.is_integer(column.type):
            index.numbers[name] = np.ascontiguousarray(column.to_numpy())
        else:
            index.texts[name] = column.unify_dictionaries().combine_chunks()
    return index
