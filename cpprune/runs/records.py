"""Records of a run: the lines of metrics.jsonl, result.json, and what model.json says of the run.

docs/files.md describes the keys. Older versions wrote fewer: those that may be missing have a default.
Unknown keys are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType, to_builtins

from shards.files.documents import to_json

Count = Annotated[int, Meta(ge=0, le=1 << 50)]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """An epoch in metrics.jsonl; a number that is not finite is NaN here and null in the file."""

    epoch: Count
    step: int = 0
    lr: float
    train_loss: float
    val_macro_accuracy: float
    val_accuracy: float
    val_log_loss: float
    val_clips: int = 0
    best: bool = False
    parameters: int = 0
    clips_per_second: float = math.nan
    memory_bytes: float = math.nan
    seconds: float = 0
    reason: str | UnsetType = UNSET
    val_confusion: list[list[int]] | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class PruneRecord:
    """A pruning step in metrics.jsonl; `part` is the fraction of the schedule that is done after it."""

    event: Literal["prune"] = "prune"
    epoch: Count
    step: int = 0
    criterion: str | None = None
    part: float | None = None
    parameters_before: Count
    parameters: Count
    widths: dict[str, Count]
    removed_blocks: list[str] = field(default_factory=list)
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class SkippedRecord:
    """A step in metrics.jsonl that was skipped; `clips` are the keys of its batch."""

    event: Literal["skipped"] = "skipped"
    epoch: int
    step: int
    batch: int
    clips: list[str]


@dataclass(frozen=True, kw_only=True)
class QuantizeRecord:
    """The beginning of quantisation-aware training in metrics.jsonl."""

    event: Literal["quantize"] = "quantize"
    epoch: Count
    step: int = 0
    layers: Count
    activations: Count
    keep_float: list[str]


Record = EpochRecord | PruneRecord | QuantizeRecord | SkippedRecord


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Metrics on the validation split; None where predictions were not finite."""

    macro_accuracy: float | None
    accuracy: float | None = None
    log_loss: float | None
    clips: int = 0


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """result.json of a finished run: folders, costs and metrics of the best model."""

    run: str
    model: str
    parameters: int
    macs: int
    operations: int | None = None  # older versions did not count them
    epoch: int
    val: Validation
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """result.json of a run that has diverged: the reason, and the best model if there is one."""

    run: str
    failed: str
    model: str | None
    epoch: int | None
    val: Validation | None


@dataclass(frozen=True, kw_only=True)
class StoppedRun:
    """A run that was asked to stop: by what, and the epoch and batch that come next."""

    run: str
    stopped: str
    epoch: int
    batch: int


@dataclass(frozen=True)
class Pruning:
    """How a model was pruned."""

    original_widths: dict[str, Count] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from: epoch, dataset and sha256 of the weights that it started from."""

    epoch: Count
    dataset: str | None
    init: str | None = None
    pruning: Pruning | None = None


@dataclass(frozen=True)
class Metrics:
    """Metrics of a model."""

    val: Validation


@dataclass(frozen=True)
class Origin:
    """What model.json says of the run that wrote it."""

    provenance: Provenance
    metrics: Metrics


def record_json(
    record: Record | RunResult | FailedRun | StoppedRun, indent: int | None = None
) -> str:
    """Return a record as it is written; NaN becomes null."""
    return to_json(to_builtins(record), indent)
