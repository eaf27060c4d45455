"""The interface of a tracker, and what it is given of a run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cpprune.evaluation.metrics import Ints
from cpprune.runs.records import RunResult
from shards.files.documents import read_json


class Tracker(Protocol):
    """A run at a tracker.

    Attributes:
        id: id of the run, the same for all the parts in which it was trained.
        look: URL or command that shows the run.
        rest: command that sends what the tracker was given and has not sent.
    """

    id: str
    look: str
    rest: str

    def log(self, record: dict[str, object]) -> None:
        """Log a line of metrics.jsonl."""

    def finish(self, run: FinishedRun) -> None:
        """Log tables, the confusion matrix and the model of a finished run."""

    def close(self, exit_code: int) -> None:
        """Send what is left and close the tracker."""


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: list[str]
    rows: list[list[object]]


class FinishedRun:
    """The results of a run, read from its folder.

    Attributes:
        classes: names of the K classes.
        confusion_KK: confusion matrix of the best model on validation, [true, predicted].
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes: list[str] = json.loads((folder / "model/model.json").read_text())["classes"]
        self.result = read_json(folder / "result.json", RunResult)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        best = [record for record in map(json.loads, lines) if "val_confusion" in record]
        self.confusion_KK: Ints = np.array(best[-1]["val_confusion"])

    def per_class(self) -> Table:
        """Return clips and accuracy of every class that has clips."""
        clips = self.confusion_KK.sum(1)
        rows = [
            [name, int(clips[k]), float(self.confusion_KK[k, k] / clips[k])]
            for k, name in enumerate(self.classes)
            if clips[k]
        ]
        return Table(["class", "clips", "accuracy"], rows)

    def widths(self) -> Table:
        """Return the widths before and after each pruning step, of every layer that it pruned."""
        rows = [
            [
                int(path.stem.removeprefix("epoch-")),
                layer["layer"],
                layer["width"],
                len(layer["keep"]),
            ]
            for path in sorted((self.folder / "plans").glob("epoch-*.json"))
            for layer in json.loads(path.read_text())["groups"]
        ]
        return Table(["epoch", "layer", "before", "after"], rows)


def scalars(record: dict[str, object]) -> dict[str, float]:
    """Return the finite numbers of a line of metrics.jsonl.

    The names of an event's begin with its own, so that they replace none of the epoch that ended at the
    same step.
    """
    prefix = f"{record['event']}/" if "event" in record else ""
    return {
        f"{prefix}{name}": value
        for name, value in record.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
