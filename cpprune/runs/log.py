"""The log of a run: metrics.jsonl, a tracker that follows it, and lines on standard error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cpprune.runs import tracking
from shards.files.documents import to_json


class RunLog:
    """Writes metrics.jsonl and standard error; only rank 0 writes.

    As a context it lets the tracker finish.

    Args:
        folder: of the run.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.file = folder / "metrics.jsonl"
        self.rank = rank
        self.tracker: tracking.Tracking | None = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.tracker is not None:
            self.tracker.close(ok=kind is None)

    def track(self, kind: str) -> None:
        """Start the tracker unless it has already received the whole run."""
        if kind != "none" and not tracking.read_state(self.folder).finished:
            self.file.touch()
            self.tracker = tracking.Tracking(self.folder, self.say, tracking.SECONDS_AT_END)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl."""
        if self.rank == 0:
            with self.file.open("a") as file:
                file.write(to_json(record) + "\n")
            if self.tracker is not None:
                self.tracker.check()

    def size(self) -> int:
        """Return the size of metrics.jsonl in bytes."""
        return self.file.stat().st_size if self.file.is_file() else 0

    def truncate(self, size: int) -> None:
        """Truncate metrics.jsonl to `size` bytes."""
        with self.file.open("a") as file:
            file.truncate(min(size, self.size()))

    def say(self, text: str) -> None:
        """Print a line on standard error."""
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)
