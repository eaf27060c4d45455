"""The log of a run: metrics.jsonl, a tracker that follows it, and the lines that a run logs."""

from __future__ import annotations

from pathlib import Path

from cpprune.runs import tracking
from cpprune.runs.records import Record, record_json
from shards.log import LOG


class RunLog:
    """Writes metrics.jsonl and to the log; only rank 0 writes.

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
        over = (self.folder / "result.json").is_file()
        if kind != "none" and not (over and tracking.read_state(self.folder).finished):
            self.file.touch()
            self.tracker = tracking.Tracking(self.folder, self.say, tracking.SECONDS_AT_END)

    def write(self, record: Record) -> None:
        """Append a record to metrics.jsonl."""
        if self.rank == 0:
            with self.file.open("a") as file:
                file.write(record_json(record) + "\n")
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
        """Log a line."""
        if self.rank == 0:
            LOG.info(text)
