"""What a trial left behind: metrics of its epochs, its result, the error in its log."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypedDict

from shards.errors import UserError
from shards.files.documents import DocumentError, json_lines, read_bytes, read_json, typed

# The last line of a traceback, with or without the rank. Launchers append tracebacks of their own.
EXCEPTION = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Interrupt)\b")
LAUNCHER = ("CalledProcessError", "ChildFailedError")
OWN = "cpprune: error"

MAX_METRICS_BYTES = 1 << 30


class _Epoch(TypedDict, total=False):
    """The keys of an epoch that are used here."""

    epoch: int
    val_macro_accuracy: float | None
    val_accuracy: float | None
    val_log_loss: float | None
    train_loss: float | None
    best: bool
    parameters: int


class _Result(TypedDict, total=False):
    """The keys of a result that are used here."""

    parameters: int
    macs: int


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """Return the epochs in a run's metrics.jsonl, in order."""
    path = run / "metrics.jsonl"
    if not os.path.lexists(path):
        return []
    epochs = []
    for number, record in enumerate(
        json_lines(read_bytes(path, MAX_METRICS_BYTES), dict[str, Any]), 1
    ):
        try:
            if isinstance(record, DocumentError):
                raise record
            if "event" not in record:
                typed(record, _Epoch)
                epochs.append(record)
        except DocumentError as error:
            raise UserError(f"{path}: line {number} {error}; repair or remove this file") from None
    return epochs


def read_result(run: Path) -> dict[str, Any] | None:
    """Return the result of a finished run; None if it is unfinished or failed."""
    path = run / "result.json"
    if not os.path.lexists(path):
        return None
    found = read_json(path, dict[str, Any], nan=True)
    try:
        typed(found, _Result)
    except DocumentError as error:
        raise UserError(f"{path}: {error}") from None
    return None if "failed" in found else found


def best_epoch(epochs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the epoch whose model was saved as the best; None if there is none yet."""
    best = [record for record in epochs if record.get("best")]
    return best[-1] if best else None


def last_error(log: Path, begin: int, status: int) -> str:
    """Return the line of a log that best explains why a command failed.

    Args:
        log: of the trial.
        begin: offset in bytes at which the output of this start begins.
        status: exit status of the command; minus the signal that killed it.
    """
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    own = [line.partition(": ")[2] for line in lines if line.startswith(OWN)]
    raised = [
        line for line in lines if EXCEPTION.match(line) and not any(k in line for k in LAUNCHER)
    ]
    said = own or raised or [line for line in lines if line]
    ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return (said[-1].removeprefix("error: ") if said else "it printed nothing") + f" ({ended})"
