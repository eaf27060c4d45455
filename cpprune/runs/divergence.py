"""Diverged runs: metrics and weights that are not finite, and how result.json records the failure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import UNSET, UnsetType

from cpprune.models import artifact
from cpprune.runs.checkpoint import Progress
from cpprune.runs.records import FailedRun, Origin, record_json
from shards.errors import UserError
from shards.files.atomic import replace_file
from shards.files.documents import DocumentError, read_json, typed

REMEDY = "lower optim.lr or set train.clip_norm, and choose another --run or --resume never"


class DivergenceError(UserError):
    """The run has failed: its gradients, weights or predictions are not finite."""


def is_better(value: float | None, best: float | None, monitor: str) -> bool:
    """Return whether a validation metric is better than the best so far; None stands for not finite."""
    if value is None or best is None:
        return value is not None
    return value < best if monitor == "log_loss" else value > best


def why_not_finite(
    weights: list[str], log_loss: float | None, train_loss: float
) -> str | UnsetType:
    """Return what explains the nulls of an epoch in metrics.jsonl, if there are any.

    Args:
        weights: names of those that are not finite.
        log_loss: on the validation split.
        train_loss: of the epoch.
    """
    if weights:
        return f"{_listed(weights)} not finite"
    if log_loss is None:
        return "the predictions on the validation split are not finite"
    return UNSET if math.isfinite(train_loss) else "the training loss is not finite"


def check_weights(names: list[str], folder: Path, progress: Progress) -> None:
    """Raise DivergenceError if there are weights that are not finite.

    Args:
        names: of them.
        folder: of the run.
        progress: of the run.
    """
    if names:
        raise DivergenceError(
            f"{folder}: in epoch {progress.epoch + (progress.batch > 0)} {_listed(names)} not "
            f"finite any more; {_kept(folder)}; {REMEDY}"
        )


def check_any_finite(best: float | None, folder: Path) -> None:
    """Raise DivergenceError if no epoch of a finished run had finite predictions."""
    if best is None:
        raise DivergenceError(
            f"{folder}: the predictions on the validation split were not finite after any epoch that "
            f"could have made the best model; {_kept(folder)}; {REMEDY}"
        )


@contextmanager
def failure_written(folder: Path, rank: int) -> Iterator[None]:
    """Write result.json with `failed`, the reason, if the run in the block diverges."""
    try:
        yield
    except DivergenceError as error:
        if rank == 0:
            best = _last_finite(folder, "model")
            result = FailedRun(
                run=str(folder),
                failed=str(error),
                model=str(folder / "model") if best else None,
                epoch=best.provenance.epoch if best else None,
                val=best.metrics.val if best else None,
            )
            text = f"{record_json(result, indent=2)}\n"
            replace_file(folder / "result.json", folder, text.encode())
        raise


def has_failed(folder: Path) -> bool:
    """Return whether result.json records that the run failed."""
    try:
        return "failed" in read_json(folder / "result.json", dict[str, object], nan=True)
    except UserError:
        return False


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the weights of {names[0]}{more} are"


def _kept(folder: Path) -> str:
    last = _last_finite(folder, "model_last")
    if last is None:
        return "no epoch left a finite model"
    return (
        f"the last finite model, of epoch {last.provenance.epoch + 1}, is in "
        f"{folder / 'model_last'}"
    )


def _last_finite(folder: Path, name: str) -> Origin | None:
    try:
        return typed(artifact.read_description(folder / name), Origin)
    except (UserError, DocumentError):
        return None
