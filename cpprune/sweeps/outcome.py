"""What a trial left: figures of its epochs, its result, the line that says why it failed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypedDict

from shards.errors import InputError
from shards.files.documents import DocumentError, json_lines, read_bytes, read_json, typed

# The last line of a traceback, also with the rank before it; launchers add tracebacks of their own.
EXCEPTION = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Interrupt)\b")
LAUNCHER = ("CalledProcessError", "ChildFailedError")
OWN = "cpprune: error"


MOST_METRICS = 1 << 30  # bytes


class _Epoch(TypedDict, total=False):
    """What is used of an epoch."""

    epoch: int
    val_macro_accuracy: float | None
    val_accuracy: float | None
    val_log_loss: float | None
    train_loss: float | None
    best: bool
    parameters: int


class _Result(TypedDict, total=False):
    """What is used of a result."""

    parameters: int
    macs: int


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl that are epochs, in order."""
    path = run / "metrics.jsonl"
    if not os.path.lexists(path):
        return []
    epochs = []
    for number, record in enumerate(json_lines(read_bytes(path, MOST_METRICS), dict[str, Any]), 1):
        try:
            if isinstance(record, DocumentError):
                raise record
            if "event" not in record:
                typed(record, _Epoch)
                epochs.append(record)
        except DocumentError as error:
            raise InputError(f"{path}: line {number} {error}; mend or remove this file") from None
    return epochs


def read_result(run: Path) -> dict[str, Any] | None:
    """Return the result of a finished run; None of another, or of one that failed."""
    path = run / "result.json"
    if not os.path.lexists(path):
        return None
    found = read_json(path, dict[str, Any], nan=True)
    try:
        typed(found, _Result)
    except DocumentError as error:
        raise InputError(f"{path}: {error}") from None
    return None if "failed" in found else found


def kept_epoch(epochs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the epoch whose model was kept as the best; None if there is none yet."""
    kept = [record for record in epochs if record.get("best")]
    return kept[-1] if kept else None


def last_error(log: Path, begin: int, status: int) -> str:
    """Return the line that says best why a command failed.

    Args:
        log: of the trial.
        begin: where this start of it begins, in bytes.
        status: that the command ended with; minus the signal that killed it.
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
