"""What a run folder tells. What is missing or damaged there is said in one sentence and left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from cpprune import artifact
from cpprune.artifact import Model
from cpprune.config import flatten
from cpprune.models.trust import UntrustedCodeError
from shards.credentials import recorded
from shards.errors import InputError

FIGURES = ("lr", "train_loss", "val_log_loss", "val_macro_accuracy", "val_accuracy")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder as it was found.

    Attributes:
        folder: where it lies.
        settings: the configuration, by dotted key.
        environment: see `cpprune.run.environment`.
        epochs: the epochs of metrics.jsonl.
        cuts: its prunings.
        skipped: how many steps it tells were skipped.
        result: of the finished run, or None.
        failed: why it failed, or None.
        model: the best so far, or None.
        notes: a sentence for everything that is missing or damaged.
    """

    folder: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    epochs: list[dict[str, Any]]
    cuts: list[dict[str, Any]]
    skipped: int
    result: dict[str, Any] | None
    failed: str | None
    model: Model | None
    notes: list[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def about(self) -> dict[str, Any]:
        """Where the model comes from; empty without a model."""
        provenance: dict[str, Any] = self.model.about["provenance"] if self.model else {}
        return provenance


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: it is none, or its model's code is not trusted.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder}: is no run folder (it has no config.yaml); give the folder that `cpprune train` "
            "wrote, such as runs/NAME"
        )
    notes: list[str] = []
    settings = read_mapping(folder / "config.yaml", yaml.safe_load, notes)
    environment = read_mapping(folder / "environment.json", json.loads, notes)
    epochs, cuts, skipped = _metrics(folder / "metrics.jsonl", notes)
    result, failed = None, None
    if (folder / "result.json").is_file():
        ended = read_mapping(folder / "result.json", json.loads, notes)
        if "failed" in ended:
            failed = str(ended["failed"])
            notes.append(f"The run failed: {failed}.")
        else:
            result = ended or None
    else:
        planned = flatten(settings).get("train.epochs", "?")
        notes.append(
            f"The run is not finished: {len(epochs)} of {planned} epochs are done; what is shown is as "
            "far as it came."
        )
    model: Model | None = None
    try:
        found = artifact.load(folder / "model")
        if not {"provenance", "metrics"} <= found.about.keys():
            raise InputError(f"{folder / 'model'} is not what a run wrote")
        model = found
    except UntrustedCodeError:
        raise
    except InputError as error:
        notes.append(f"There is no model to show: {error}.")
    return Run(
        folder=folder,
        settings=recorded(flatten(settings)),
        environment=recorded(environment),
        epochs=epochs,
        cuts=cuts,
        skipped=skipped,
        result=result,
        failed=failed,
        model=model,
        notes=notes,
    )


def times(number: int) -> str:
    """Return "once" or "3 times"."""
    return "once" if number == 1 else f"{number} times"


def read_mapping(path: Path, parse: Callable[[str], Any], notes: list[str]) -> dict[str, Any]:
    """Read a file that holds names and values; one that does not is empty, and noted.

    Args:
        path: of the file.
        parse: its text → what it holds, or ValueError or YAMLError.
        notes: gets a sentence where the file is damaged.
    """
    try:
        found = parse(path.read_text())
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror}).")
        return {}
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{path.name} is damaged and left out.")
        return {}
    return found


def _metrics(
    path: Path, notes: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    if not path.is_file():
        notes.append("There is no metrics.jsonl: no epoch was finished.")
        return [], [], 0
    epochs, cuts, damaged, skipped = [], [], [], 0
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            # An older version wrote NaN where null stands now.
            record = json.loads(line, parse_constant=lambda _: None)
        except ValueError:
            record = None
        if _is_epoch(record):
            epochs.append({k: math.nan if v is None else v for k, v in record.items()})
        elif _is_cut(record):
            cuts.append(record)
        elif isinstance(record, dict) and record.get("event"):
            skipped += record["event"] == "skipped"
        else:
            damaged.append(str(number))
    if lost := [record["epoch"] + 1 for record in epochs if _not_finite(record)]:
        which = f"epochs {', '.join(map(str, lost))}" if len(lost) > 1 else f"epoch {lost[0]}"
        notes.append(f"Figures of {which} are not finite and left out.")
    if damaged:
        lines = f"lines {', '.join(damaged)} are" if len(damaged) > 1 else f"line {damaged[0]} is"
        notes.append(f"metrics.jsonl: {lines} damaged and left out.")
    return epochs, cuts, skipped


def _is_epoch(record: object) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("epoch"), int)
        and all(isinstance(record.get(key, ""), (int, float, NoneType)) for key in FIGURES)
    )


def _not_finite(record: dict[str, Any]) -> bool:
    return not all(math.isfinite(record[key]) for key in FIGURES)


def _is_cut(record: object) -> bool:
    if not isinstance(record, dict) or record.get("event") != "prune":
        return False
    numbers = (record.get(key) for key in ("epoch", "parameters_before", "parameters"))
    return all(isinstance(n, int) for n in numbers) and isinstance(record.get("widths"), dict)
