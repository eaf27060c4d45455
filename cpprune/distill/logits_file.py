"""Files of logits by the keys of the clips: `.npz` with arrays `keys` and `logits`.

`cpprune logits` also writes `classes`, in the order of the columns, and `dataset`, the fingerprint of
the dataset; a file from elsewhere may leave out both.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpprune.distill.teacher import class_order
from shards.errors import UserError
from shards.files.atomic import write_output
from shards.files.documents import read_bytes
from shards.reader import Dataset
from shards.split import Split

MOST_BYTES = 1 << 32
# What numpy and zipfile raise where a file is damaged.
_DAMAGE = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
REMEDY = "make it with cpprune logits"


def write_logits(path: Path, split: Split, logits: NDArray[np.float32]) -> None:
    """Write the logits [N, K] of a split's clips.

    Raises:
        UserError: they are not finite, or the file cannot be written.
    """
    dataset = split.dataset
    check_finite(logits, dataset, split.ids, "the models")
    file = io.BytesIO()
    np.savez(
        file,
        keys=np.array(split.keys),
        logits=logits,
        classes=np.array(dataset.classes),
        dataset=np.array(dataset.fingerprint),
    )
    write_output(path, file.getvalue(), "--out")


def read_logits(path: Path, dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the logits [n, K] of these rows of a dataset, columns in the order of its classes.

    Raises:
        UserError: it is not such a file, is one of another dataset or of other classes, lacks a clip,
            or holds numbers that are not finite.
    """
    arrays = read_arrays(path, ("keys", "logits", "classes", "dataset"), REMEDY)
    keys, logits = arrays.get("keys"), arrays.get("logits")
    if keys is None or logits is None:
        raise UserError(f"{path}: must hold arrays keys and logits; {REMEDY}")
    if keys.dtype.kind != "U" or logits.dtype.kind != "f" or logits.shape[:1] != keys.shape:
        raise UserError(
            f"{path}: keys must be text [N] and logits floats [N, K], but they are {keys.dtype} "
            f"{list(keys.shape)} and {logits.dtype} {list(logits.shape)}; {REMEDY}"
        )
    for name, axes in (("classes", 1), ("dataset", 0)):
        own = arrays.get(name)
        if own is not None and (own.dtype.kind != "U" or own.ndim != axes):
            raise UserError(
                f"{path}: {name} must be text{' [K]' * axes}, but is {own.dtype} {list(own.shape)}; "
                f"{REMEDY}, or leave it out"
            )
    if logits.ndim != 2 or logits.shape[1] != len(dataset.classes):
        raise UserError(
            f"{path}: logits of shape {list(logits.shape)}, but {dataset.path} has "
            f"{len(dataset.classes)} classes; {REMEDY}"
        )
    made_of = str(arrays["dataset"]) if "dataset" in arrays else dataset.fingerprint
    if made_of != dataset.fingerprint:
        raise UserError(f"{path}: was made from another dataset than {dataset.path}; {REMEDY}")
    if "classes" in arrays:
        logits = logits[:, class_order(arrays["classes"].tolist(), dataset.classes, str(path))]
    place = {key: number for number, key in enumerate(keys.tolist())}
    if len(place) < len(keys):
        raise UserError(f"{path}: names a clip twice; {REMEDY}")
    wanted = [dataset.key(int(row)) for row in rows]
    if missing := [key for key in wanted if key not in place]:
        raise UserError(
            f"{path}: lacks {len(missing):,} of {len(rows):,} training clips, such as {missing[0]}; "
            f"{REMEDY}"
        )
    found = logits[[place[key] for key in wanted]].astype(np.float32)
    check_finite(found, dataset, rows, str(path))
    return found


def check_finite(
    logits: NDArray[np.float32], dataset: Dataset, rows: NDArray[np.int64], whose: str
) -> None:
    """Raise UserError, naming a clip, unless all logits of these rows are finite."""
    wrong = np.flatnonzero(~np.isfinite(logits).all(1))
    if len(wrong):
        raise UserError(
            f"{whose}: logits are not finite for {len(wrong):,} of {len(rows):,} clips, such as "
            f"{dataset.key(int(rows[wrong[0]]))}; leave this teacher out, or train it again"
        )


def read_arrays(path: Path, names: Sequence[str], remedy: str) -> dict[str, NDArray[np.generic]]:
    """Return those of the named arrays that a `.npz` file holds.

    Raises:
        UserError: it cannot be read, or does not match its checksums; the message ends with the remedy.
    """
    payload = read_bytes(path, MOST_BYTES, remedy)
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file}
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: is not a .npz file of logits ({reason}); {remedy}") from None
