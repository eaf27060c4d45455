"""What a trial left behind: metrics of its epochs, its result, the error in its log."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError
from shards.files.documents import DocumentError, json_lines, read_bytes, read_json, typed

# The last line of a traceback, with or without the rank. Launchers append tracebacks of their own.
EXCEPTION = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Interrupt)\b")
LAUNCHER = ("CalledProcessError", "ChildFailedError")
OWN = "cpprune: error"

MAX_METRICS_BYTES = 1 << 30


@dataclass(frozen=True)
class TrialEpoch:
    """What a sweep uses of an epoch in metrics.jsonl; a program other than cpprune's may log less."""

    epoch: int | None = None
    val_macro_accuracy: float | None = None
    val_accuracy: float | None = None
    val_log_loss: float | None = None
    train_loss: float | None = None
    best: bool = False
    parameters: int | None = None

    def metric(self, name: str) -> float | None:
        """Return one of `definition.METRICS`; None if it is not finite."""
        value: float | None = getattr(self, name)
        return value


@dataclass(frozen=True)
class TrialResult:
    """What a sweep uses of result.json; `failed` is the reason, if the run has failed."""

    parameters: int | None = None
    macs: int | None = None
    failed: object = None


def read_epochs(run: Path) -> list[TrialEpoch]:
    """Return the epochs in a run's metrics.jsonl, in order."""
    path = run / "metrics.jsonl"
    if not os.path.lexists(path):
        return []
    epochs = []
    lines = json_lines(read_bytes(path, MAX_METRICS_BYTES), dict[str, object])
    for number, record in enumerate(lines, 1):
        try:
            if isinstance(record, DocumentError):
                raise record
            if "event" not in record:
                epochs.append(typed(record, TrialEpoch))
        except DocumentError as error:
            raise UserError(f"{path}: line {number} {error}; repair or remove this file") from None
    return epochs


def read_result(run: Path) -> TrialResult | None:
    """Return the result of a finished run; None if it is unfinished or failed."""
    path = run / "result.json"
    if not os.path.lexists(path):
        return None
    found = read_json(path, TrialResult, nan=True)
    return None if found.failed else found


def best_epoch(epochs: list[TrialEpoch]) -> TrialEpoch | None:
    """Return the epoch whose model was saved as the best; None if there is none yet."""
    best = [record for record in epochs if record.best]
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
