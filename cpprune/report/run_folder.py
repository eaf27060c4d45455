"""Reading a run folder for a report. Missing or damaged parts are left out, with a note."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from cpprune.config import flatten
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.trust import UntrustedCodeError
from cpprune.settings.renamed import current
from shards.credentials import recorded
from shards.errors import UserError
from shards.files.documents import (
    DocumentError,
    json_lines,
    parse_json,
    parse_yaml,
    read_bytes,
    typed,
)

MAX_METRICS_BYTES = 1 << 30  # bytes
Number = Annotated[int, Meta(ge=0, le=1 << 50)]
Figure = float | None

# The keys of a run's files that reports use.
Settings = TypedDict(
    "Settings",
    {
        "seed": int,
        "init": str | None,
        "data.path": str,
        "data.cache": str | None,
        "data.cache_bytes": int,
        "prune.budget": str | None,
    },
    total=False,
)


class Environment(TypedDict, total=False):
    """environment.json."""

    packages: dict[str, Any] | None
    gpus: list[Any] | None
    command: list[Any] | None


class Epoch(TypedDict):
    """An epoch in metrics.jsonl."""

    epoch: Number
    lr: Figure
    train_loss: Figure
    val_log_loss: Figure
    val_macro_accuracy: Figure
    val_accuracy: Figure
    clips_per_second: NotRequired[Figure]
    memory_bytes: NotRequired[Figure]
    seconds: NotRequired[Figure]


class Cut(TypedDict):
    """A pruning step in metrics.jsonl."""

    epoch: Number
    parameters_before: Number
    parameters: Number
    widths: dict[str, Number]


class Pruning(TypedDict, total=False):
    """How a model was pruned."""

    original_widths: dict[str, Number]


class Provenance(TypedDict):
    """Where a model comes from."""

    epoch: Number
    dataset: str | None
    init: NotRequired[str | None]
    pruning: NotRequired[Pruning | None]


class Validation(TypedDict):
    """Metrics on the validation split."""

    macro_accuracy: Figure
    log_loss: Figure


class Metrics(TypedDict):
    """Metrics of a model."""

    val: Validation


class About(TypedDict):
    """model.json."""

    provenance: Provenance
    metrics: Metrics


FIGURES = ("lr", "train_loss", "val_log_loss", "val_macro_accuracy", "val_accuracy")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of a run folder.

    Attributes:
        folder: its path.
        settings: dotted key → value of the configuration.
        environment: see `cpprune.runs.environment`.
        epochs: epochs in metrics.jsonl.
        cuts: pruning steps in metrics.jsonl.
        skipped: number of skipped optimizer steps.
        result: of a finished run, or None.
        failed: why the run failed, or None.
        model: the best so far, or None.
        notes: a sentence for each part that is missing or damaged.
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
        """Provenance of the model; empty without a model."""
        provenance: dict[str, Any] = self.model.metadata["provenance"] if self.model else {}
        return provenance


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it is not a run folder, or the model's code is not trusted.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: is not a run folder (it has no config.yaml); give a folder that `cpprune train` "
            "wrote, such as runs/NAME"
        )
    notes: list[str] = []
    settings = read_mapping(folder / "config.yaml", notes)
    if _wrong(flatten(settings), Settings):
        notes.append("config.yaml is damaged and left out.")
        settings = {}
    environment = read_mapping(folder / "environment.json", notes)
    if _wrong(environment, Environment):
        notes.append("environment.json is damaged and left out.")
        environment = {}
    epochs, cuts, skipped = _metrics(folder / "metrics.jsonl", notes)
    result, failed = None, None
    if (folder / "result.json").is_file():
        ended = read_mapping(folder / "result.json", notes)
        if "failed" in ended:
            failed = str(ended["failed"])
            notes.append(f"The run failed: {failed}.")
        else:
            result = ended or None
    else:
        planned = flatten(settings).get("train.epochs", "?")
        notes.append(
            f"The run is not finished: {len(epochs)} of {planned} epochs are complete; this report "
            "shows the state so far."
        )
    model: Model | None = None
    try:
        found = artifact.load(folder / "model")
        if wrong := _wrong(found.metadata, About):
            raise UserError(f"{folder / 'model'} was not written by a run ({wrong})")
        model = found
    except UntrustedCodeError:
        raise
    except UserError as error:
        notes.append(f"There is no model to show: {error}.")
    return Run(
        folder=folder,
        settings=recorded(current(flatten(settings))),
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


def read_mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    """Read a JSON or YAML file that holds a mapping; return an empty one if it is damaged.

    Args:
        path: of the file.
        notes: receives a sentence if the file is damaged.
    """
    try:
        data = read_bytes(path)
    except UserError as error:
        notes.append(f"{path.name} cannot be read ({error}).")
        return {}
    try:
        if path.suffix == ".yaml":
            return parse_yaml(data, dict[str, Any])
        return parse_json(data, dict[str, Any], nan=True)
    except DocumentError:
        notes.append(f"{path.name} is damaged and left out.")
        return {}


def _wrong(document: object, kind: type) -> str:
    """Return where a document differs from a type; an empty text if it does not."""
    try:
        typed(document, kind)
    except DocumentError as error:
        return str(error)
    return ""


def _metrics(
    path: Path, notes: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    if not path.is_file():
        notes.append("There is no metrics.jsonl: no epoch is complete.")
        return [], [], 0
    try:
        data = read_bytes(path, MAX_METRICS_BYTES)
    except UserError as error:
        notes.append(f"metrics.jsonl cannot be read ({error}).")
        return [], [], 0
    epochs, cuts, damaged, skipped = [], [], [], 0
    # A run that was killed may have left an incomplete line.
    torn = b"" if data.endswith(b"\n") or not data else b"\n"
    for number, record in enumerate(json_lines(data + torn, dict[str, Any]), 1):
        if isinstance(record, DocumentError):
            damaged.append(str(number))
        elif record.get("event"):
            skipped += record["event"] == "skipped"
            if record["event"] == "prune":
                if _wrong(record, Cut):
                    damaged.append(str(number))
                else:
                    cuts.append(record)
        elif _wrong(record, Epoch):
            damaged.append(str(number))
        else:
            epochs.append({k: math.nan if v is None else v for k, v in record.items()})
    if lost := [record["epoch"] + 1 for record in epochs if _not_finite(record)]:
        which = f"epochs {', '.join(map(str, lost))}" if len(lost) > 1 else f"epoch {lost[0]}"
        notes.append(f"Metrics of {which} are not finite and left out.")
    if damaged:
        lines = f"lines {', '.join(damaged)} are" if len(damaged) > 1 else f"line {damaged[0]} is"
        notes.append(f"metrics.jsonl: {lines} damaged and left out.")
    return epochs, cuts, skipped


def _not_finite(record: dict[str, Any]) -> bool:
    return not all(math.isfinite(record[key]) for key in FIGURES)
