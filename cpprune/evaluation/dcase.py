"""What is only true of the DCASE challenge's task 1 and its TAU datasets: limits and submissions."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from cpprune.evaluation.metrics import Floats
from shards.files.atomic import write_output

if TYPE_CHECKING:
    from shards.split import Split

# Complexity limits of DCASE 2024 task 1.
MAX_BYTES = 128_000
MAX_MACS = 30_000_000


class MacsLimit(TypedDict):
    """The limit of MACs, and whether it is met."""

    limit: int
    ok: bool


class BytesLimit(TypedDict):
    """The limit of the parameters' bytes, and whether it is met, by dtype."""

    limit: int
    ok: dict[str, bool]


class Limits(TypedDict):
    """DCASE's limits, as they are printed as JSON."""

    macs: MacsLimit
    bytes: BytesLimit


class Cost(TypedDict):
    """What one forward pass costs; of several networks, their sum."""

    parameters: int
    macs: int
    operations: int


class Complexity(Cost):
    """What a network costs, as it is printed as JSON.

    `receptive_field` holds mel_bins and frames; exported files have none.
    """

    bytes: dict[str, int]
    receptive_field: NotRequired[dict[str, int]]
    limits: Limits


def limits(macs: int, size: Mapping[str, int]) -> Limits:
    """Return DCASE's limits and whether a network is within them, JSON-ready.

    Args:
        macs: of one forward pass.
        size: bytes of the parameters by dtype.
    """
    return {
        "macs": {"limit": MAX_MACS, "ok": macs <= MAX_MACS},
        "bytes": {"limit": MAX_BYTES, "ok": {k: n <= MAX_BYTES for k, n in size.items()}},
    }


def write_submission(
    path: Path, filenames: Sequence[str], classes: Sequence[str], log_prob_NK: Floats
) -> None:
    """Write predictions in DCASE's format: tab-separated filename, scene_label, one column per class."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["filename", "scene_label", *classes])
    for name, row in zip(filenames, log_prob_NK, strict=True):
        writer.writerow([name, classes[int(row.argmax())], *(f"{p:.6f}" for p in np.exp(row))])
    # A file name need not be valid UTF-8.
    write_output(path, text.getvalue().encode(errors="surrogateescape"), "--predictions")


def submission_names(split: Split) -> list[str]:
    """Return the file names of a split's clips as the dataset's own lists write them."""
    if split.dataset.manifest.source.get("kind") == "tau2022":
        return [f"audio/{key}.wav" for key in split.keys]
    return list(split.keys)
