"""Reading an untrusted `index.parquet`: its hash may be right and its contents still wrong."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.manifest import INDEX_TYPES, LONGEST_TEXT, MANIFEST_NAME, Index, Manifest, read_index

# Largest uncompressed size: so much for each row, and so much in addition.
MAX_BYTES_PER_ROW = 4096
MAX_EXTRA_BYTES = 16 << 20


def open_index(
    path: Path, manifest: Manifest, columns: Sequence[str], encoded: Sequence[str] = ()
) -> Index:
    """Reads columns of an index after checking number, types and sizes against the manifest.

    Args:
        path: the index file.
        manifest: manifest of the dataset.
        columns: names of the columns to read; see `shards.manifest.read_index`.
        encoded: those that stay dictionary-encoded.

    Raises:
        UserError: the file is not an index of this dataset.
    """
    import pyarrow as pa

    try:
        _check_columns(path, manifest, columns)
        texts = [name for name in columns if INDEX_TYPES.get(name, "string") == "string"]
        index = read_index(path, columns, texts)
        for name, column in index.texts.items():
            # Few bytes of a dictionary may decode to very many.
            if any(len(text or "") > LONGEST_TEXT for text in column.dictionary.to_pylist()):
                raise UserError(f"{path}: a {name} has more than {LONGEST_TEXT:,} letters")
            if name not in encoded:
                index.texts[name] = column.dictionary_decode()
        return index
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not the index of a dataset ({reason})") from None


def _check_columns(path: Path, manifest: Manifest, columns: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        found, schema = file.metadata, file.schema_arrow
        if found.num_rows != manifest.index["rows"]:
            raise UserError(f"{path}: its rows contradict {MANIFEST_NAME}")
        groups = range(found.num_row_groups)
        unpacked = sum(
            found.row_group(group).column(column).total_uncompressed_size
            for group in groups
            for column in range(found.num_columns)
        )
        if unpacked > MAX_BYTES_PER_ROW * found.num_rows + MAX_EXTRA_BYTES:
            raise UserError(f"{path}: unpacks to {unpacked:,} bytes for {found.num_rows:,} rows")
        for name in columns:
            places = schema.get_all_field_indices(name)
            kind = schema.field(places[0]).type if len(places) == 1 else None
            expected = pa.type_for_alias(INDEX_TYPES.get(name, "string"))
            if kind != expected:
                raise UserError(f"{path}: its column {name!r} must be one of {expected}")


def contradictions(index: Index, manifest: Manifest) -> list[str]:
    """Returns the names of what contradicts the manifest in an index, such as "labels"; empty if none.

    Args:
        index: columns of the index, among them "label", "shard", "offset" and "size".
        manifest: manifest of the dataset.
    """
    numbers, texts = index
    shards, labels = numbers["shard"], numbers["label"]
    rows = manifest.index["rows"]
    wrong = []
    if any(len(column) != rows for column in (*numbers.values(), *texts.values())):
        return ["rows"]
    if any(column.null_count for column in texts.values()):
        return ["rows"]
    counts = np.array([shard.count for shard in manifest.shards], np.int64)
    if not np.array_equal(shards, np.repeat(np.arange(len(counts)), counts)):
        return ["clips of the shards"]
    if "split" in texts and Counter(texts["split"].to_pylist()) != {
        name: split["count"] for name, split in manifest.splits.items()
    }:
        wrong.append("clips of the splits")
    if rows and not 0 <= labels.min() <= labels.max() < len(manifest.classes):
        wrong.append("labels")
    for first, length in (("offset", "size"), ("record_offset", "record_size")):
        if first in numbers and not _fits(numbers[first], numbers[length], shards, manifest):
            wrong.append("places of the clips")
            break
    else:
        # Uncompressed samples have the same size: a header of a few bytes, and the values.
        width = int(np.prod(manifest.shape)) * np.dtype(manifest.dtype).itemsize
        sizes = numbers["size"]
        alike = manifest.encoding == "flac" or not rows or sizes.min() == sizes.max()
        if rows and (
            not alike or (manifest.encoding != "flac" and not 0 <= sizes[0] - width < 4096)
        ):
            wrong.append("sizes of the clips")
    return wrong


def _fits(
    offsets: NDArray[np.integer],
    sizes: NDArray[np.integer],
    shards: NDArray[np.integer],
    manifest: Manifest,
) -> bool:
    """Returns whether pieces lie within their shards, without overlap and in order."""
    if not len(offsets):
        return True
    if offsets.min() < 0 or sizes.min() < 1:
        return False
    bytes_of = np.array([shard.bytes for shard in manifest.shards], np.int64)
    if (offsets > bytes_of[shards] - sizes).any():
        return False
    same = shards[1:] == shards[:-1]
    return bool((~same | (offsets[1:] >= offsets[:-1] + sizes[:-1])).all())
