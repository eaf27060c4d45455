"""What a trial left: figures of its epochs, its result, the line that says why it failed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

# The last line of a traceback, also with the rank before it; launchers add tracebacks of their own.
EXCEPTION = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Interrupt)\b")
LAUNCHER = ("CalledProcessError", "ChildFailedError")
OWN = "cpprune: error"


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl that are epochs, in order."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    # An older version wrote NaN where null stands now.
    whole = [
        json.loads(line, parse_constant=lambda _: None) for line in lines if line.endswith(b"\n")
    ]
    return [record for record in whole if "event" not in record]


def read_result(run: Path) -> dict[str, Any] | None:
    """Return the result of a finished run; None of another, or of one that failed."""
    try:
        found: dict[str, Any] = json.loads((run / "result.json").read_bytes())
    except FileNotFoundError:
        return None
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
