"""The contract of a dataset folder: `dataset.json` and `index.parquet`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import InputError

FORMAT = "cpprune-shards/1"
MANIFEST_NAME = "dataset.json"
INDEX_NAME = "index.parquet"
REJECTED_NAME = "rejected.csv"
WORK_NAME = ".build"
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


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file: its name in the folder, its split, its samples, its bytes and their SHA-256."""

    name: str
    split: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `dataset.json` says; `sha256` covers all the rest and is the dataset's fingerprint."""

    kind: str
    classes: tuple[str, ...]
    sample_rate: int | None
    shape: tuple[int, ...]
    dtype: str
    encoding: str
    splits: dict[str, dict[str, Any]]
    groups: tuple[str, ...]
    shards: tuple[Shard, ...]
    index: dict[str, Any]
    rejected: dict[str, Any] | None
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


def sha256_of_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """Reads the bytes of a `dataset.json`.

    Raises:
        ValueError: if the bytes are not those that were written; the message says why.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict) or "format" not in document:
        raise ValueError("it is not the manifest of a dataset")
    if document["format"] != FORMAT:
        raise ValueError(f"its format is {document['format']!r}, this version reads {FORMAT!r}")
    try:
        fields = {name: value for name, value in document.items() if name != "format"}
        manifest = Manifest(
            **{
                **fields,
                "classes": tuple(fields["classes"]),
                "splits": {
                    name: fields["splits"][name] for name in SPLITS if name in fields["splits"]
                },
                "shape": tuple(fields["shape"]),
                "groups": tuple(fields["groups"]),
                "shards": tuple(Shard(**entry) for entry in fields["shards"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise ValueError("fields are missing or unknown") from error
    if manifest.sealed().to_bytes() != data:
        raise ValueError("its sha256 does not match its contents")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks `dataset.json` in a dataset folder.

    Raises:
        InputError: if the folder is no finished dataset or the file was changed.
    """
    if not folder.is_dir():
        raise InputError(f"no dataset at {folder}: the folder does not exist")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        why = (
            "its build did not finish: run the same `cpprune shards build` again"
            if (folder / WORK_NAME).is_dir()
            else f"it has no {MANIFEST_NAME}; make one with `cpprune shards build`"
        )
        raise InputError(f"{folder} is not a dataset: {why}")
    try:
        return parse_manifest(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} cannot be used: {error}") from error


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
