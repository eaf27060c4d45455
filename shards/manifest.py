"""The contract of a dataset folder: `dataset.json` and `index.parquet`."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from msgspec import Meta

from shards.errors import UserError
from shards.files.documents import DocumentError, parse_json, read_bytes, typed

FORMAT = "cpprune-shards/1"
MANIFEST_NAME = "dataset.json"
INDEX_NAME = "index.parquet"
REJECTED_NAME = "rejected.csv"
WORK_NAME = ".build"
# Of an index whose manifest does not say how many bytes it has, since an older version wrote it.
MOST_INDEX = 1 << 20
MOST_INDEX_ROW = 4096
SPLITS = ("train", "val", "test")

# The columns of the index that are not groups, with their type on disk.
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
MOST_MANIFEST = 64 << 20  # bytes: that of 100,000 shards has 25 MB
MOST_VALUES = 1 << 26  # in one sample
LONGEST_TEXT = 4096  # letters of a cell of the index


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file: its name in the folder, its split, its samples, its bytes and their SHA-256."""

    name: FileName
    split: str
    count: Count
    bytes: Size
    sha256: Digest


class SplitCounts(TypedDict):
    """How many samples a split has, in all and of each class."""

    count: Count
    classes: dict[str, Count]


class IndexFile(TypedDict):
    """The index: its name, hash and rows."""

    name: Annotated[str, Meta(pattern=r"^index\.parquet$")]
    sha256: Digest
    rows: Count
    bytes: NotRequired[Size]  # older builds did not say it


class RejectedFile(TypedDict):
    """The list of files that were not used: its name, hash and lines."""

    name: Annotated[str, Meta(pattern=r"^rejected\.csv$")]
    sha256: Digest
    count: Count


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `dataset.json` says; `sha256` covers all the rest and is the dataset's fingerprint."""

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
    source: dict[str, Any]
    sha256: str = ""

    def sealed(self) -> "Manifest":
        """Returns the same manifest with `sha256` computed over everything else."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Manifest(**{**fields, "sha256": sha256_of(canonical(self._document()))})

    def to_bytes(self) -> bytes:
        """Returns the bytes of `dataset.json`."""
        return canonical({**self._document(), "sha256": self.sha256})

    def _document(self) -> dict[str, Any]:
        document = {"format": FORMAT, **asdict(self)}
        del document["sha256"]
        return document


def canonical(document: Mapping[str, Any]) -> bytes:
    """Returns the one serialisation of a JSON document: sorted keys, two spaces, a last newline."""
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def sha256_of(data: bytes) -> str:
    """Returns the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path, most: int | None = None) -> str:
    """Returns the hexadecimal SHA-256 of a file; "" if it has more than `most` bytes."""
    with path.open("rb") as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            return ""  # a file with holes may seem to have any number of bytes
        return hashlib.file_digest(file, "sha256").hexdigest()


def most_index_bytes(index: Mapping[str, Any]) -> int:
    """Returns how many bytes an index may have, by what the manifest says of it."""
    bound: int = index.get("bytes", MOST_INDEX + MOST_INDEX_ROW * index["rows"])
    return bound


def parse_manifest(data: bytes) -> Manifest:
    """Reads the bytes of a `dataset.json`.

    Raises:
        ValueError: if the bytes are not those that were written; the message says why.
    """
    try:
        document = parse_json(data, dict[str, Any])
    except DocumentError as error:
        raise ValueError(f"it {error}") from None
    if "format" not in document:
        raise ValueError("it is not the manifest of a dataset")
    if document["format"] != FORMAT:
        raise ValueError(f"its format is {document['format']!r}, this version reads {FORMAT!r}")
    fields = {name: value for name, value in document.items() if name != "format"}
    unknown = sorted(fields.keys() - Manifest.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"it has a field {unknown[0]!r} that is not known")
    try:
        typed(fields, Manifest)
    except DocumentError as error:
        raise ValueError(f"its {error}") from None
    manifest = Manifest(
        **{
            **fields,
            "classes": tuple(fields["classes"]),
            "splits": {name: fields["splits"][name] for name in SPLITS if name in fields["splits"]},
            "shape": tuple(fields["shape"]),
            "groups": tuple(fields["groups"]),
            "shards": tuple(typed(entry, Shard) for entry in fields["shards"]),
        }
    )
    if manifest.sealed().to_bytes() != data:
        raise ValueError("its sha256 does not match its contents")
    _check_sense(manifest)
    return manifest


def _check_sense(manifest: Manifest) -> None:
    """Raises ValueError where parts of a manifest contradict each other, as only forged ones do."""
    audio = manifest.kind == "audio"
    shards, splits = manifest.shards, manifest.splits
    numbers = [SPLITS.index(shard.split) for shard in shards if shard.split in SPLITS]
    of_shards = Counter[str]()
    for shard in shards:
        of_shards[shard.split] += shard.count
    taken = set(INDEX_TYPES)
    sound = (
        ("sample_rate", (manifest.sample_rate is not None) == audio),
        ("shape", len(manifest.shape) == (1 if audio else 3)),
        ("shape", math.prod(manifest.shape) <= MOST_VALUES),
        ("dtype", manifest.dtype == ("int16" if audio else "uint8")),
        ("encoding", (manifest.encoding == "npy") != audio),
        ("classes", len(set(manifest.classes)) == len(manifest.classes)),
        ("groups", len({*manifest.groups, *taken}) == len(manifest.groups) + len(taken)),
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
        # A record has at least two headers of 512 bytes.
        ("shards", all(1024 * shard.count <= shard.bytes for shard in shards)),
    )
    wrong = [name for name, holds in sound if not holds]
    if wrong:
        raise ValueError(f"its {wrong[0]} contradict the rest of it, or cannot be")


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks `dataset.json` in a dataset folder.

    Raises:
        UserError: if the folder is no finished dataset or the file was changed.
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
        return parse_manifest(read_bytes(path, MOST_MANIFEST))
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def write_index(path: Path, columns: Mapping[str, Sequence[Any]], groups: Sequence[str]) -> None:
    """Writes `index.parquet`; the same columns always give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {**INDEX_TYPES, **dict.fromkeys(groups, "string")}
    arrays = {
        name: pa.array(columns[name], type=pa.type_for_alias(kind)) for name, kind in types.items()
    }
    table = pa.table(arrays)
    pq.write_table(table, path, compression="zstd", row_group_size=1 << 20, store_schema=False)


def read_index(path: Path, columns: Sequence[str], encoded: Sequence[str] = ()) -> dict[str, Any]:
    """Reads columns of `index.parquet`: numbers as numpy arrays, texts as pyarrow arrays.

    Args:
        path: the file.
        columns: the names of the columns wanted.
        encoded: those of them that come dictionary-encoded, to save memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(
        path, columns=list(columns), read_dictionary=list(encoded), use_threads=False
    )
    found: dict[str, Any] = {}
    for name in columns:
        column = table.column(name)
        if pa.types.is_integer(column.type):
            found[name] = np.ascontiguousarray(column.to_numpy())
        else:
            found[name] = column.unify_dictionaries().combine_chunks()
    return found
