"""Reading a run folder for a report. Missing or damaged parts are left out, with a note."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from cpprune.config import flatten
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.trust import UntrustedCodeError
from cpprune.runs.environment import Environment
from cpprune.runs.records import EpochRecord, Origin, Provenance, PruneRecord, QuantizeRecord
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

# The settings that reports and comparisons compute with.
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of a run folder.

    Attributes:
        folder: its path.
        settings: dotted key → value of the configuration.
        known: those of them that are checked.
        environment: see `cpprune.runs.environment`.
        epochs: epochs in metrics.jsonl.
        cuts: pruning steps in metrics.jsonl.
        quantised: when quantisation-aware training began; None if it did not.
        skipped: number of skipped optimizer steps.
        finished: whether it has a result.
        failed: why the run failed, or None.
        model: the best so far, or None.
        origin: what its model.json says of the run; None without a model.
        notes: a sentence for each part that is missing or damaged.
    """

    folder: Path
    settings: dict[str, object]
    known: Settings
    environment: Environment
    epochs: list[EpochRecord]
    cuts: list[PruneRecord]
    quantised: QuantizeRecord | None
    skipped: int
    finished: bool
    failed: str | None
    model: Model | None
    origin: Origin | None
    notes: list[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def about(self) -> Provenance | None:
        """Provenance of the model; None without a model."""
        return self.origin.provenance if self.origin else None


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
    settings = recorded(current(flatten(read_mapping(folder / "config.yaml", notes))))
    try:
        known = typed(settings, Settings)
    except DocumentError:
        notes.append("config.yaml is damaged and left out.")
        settings, known = {}, Settings()
    environment = Environment()
    try:
        found = recorded(read_mapping(folder / "environment.json", notes))
        environment = typed(found, Environment)
    except DocumentError:
        notes.append("environment.json is damaged and left out.")
    metrics = _metrics(folder / "metrics.jsonl", notes)
    finished, failed = False, None
    if (folder / "result.json").is_file():
        ended = read_mapping(folder / "result.json", notes)
        if "failed" in ended:
            failed = str(ended["failed"])
            notes.append(f"The run failed: {failed}.")
        else:
            finished = bool(ended)
    else:
        planned = settings.get("train.epochs", "?")
        notes.append(
            f"The run is not finished: {len(metrics.epochs)} of {planned} epochs are complete; this "
            "report shows the state so far."
        )
    model, origin = _model(folder / "model", notes)
    return Run(
        folder=folder,
        settings=settings,
        known=known,
        environment=environment,
        epochs=metrics.epochs,
        cuts=metrics.cuts,
        quantised=metrics.quantised,
        skipped=metrics.skipped,
        finished=finished,
        failed=failed,
        model=model,
        origin=origin,
        notes=notes,
    )


def _model(folder: Path, notes: list[str]) -> tuple[Model, Origin] | tuple[None, None]:
    try:
        model = artifact.load(folder)
        try:
            return model, typed(model.metadata, Origin)
        except DocumentError as error:
            raise UserError(f"{folder} was not written by a run ({error})") from None
    except UntrustedCodeError:
        raise
    except UserError as error:
        notes.append(f"There is no model to show: {error}.")
        return None, None


def times(number: int) -> str:
    """Return "once" or "3 times"."""
    return "once" if number == 1 else f"{number} times"


def read_mapping(path: Path, notes: list[str]) -> dict[str, object]:
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
            return parse_yaml(data, dict[str, object])
        return parse_json(data, dict[str, object], nan=True)
    except DocumentError:
        notes.append(f"{path.name} is damaged and left out.")
        return {}


@dataclass(kw_only=True)
class _Metrics:
    """The contents of metrics.jsonl; see `Run`."""

    epochs: list[EpochRecord] = field(default_factory=list)
    cuts: list[PruneRecord] = field(default_factory=list)
    quantised: QuantizeRecord | None = None
    skipped: int = 0


def _metrics(path: Path, notes: list[str]) -> _Metrics:
    if not path.is_file():
        notes.append("There is no metrics.jsonl: no epoch is complete.")
        return _Metrics()
    try:
        data = read_bytes(path, MAX_METRICS_BYTES)
    except UserError as error:
        notes.append(f"metrics.jsonl cannot be read ({error}).")
        return _Metrics()
    found = _Metrics()
    damaged: list[str] = []
    # A run that was killed may have left an incomplete line.
    torn = b"" if data.endswith(b"\n") or not data else b"\n"
    for number, record in enumerate(json_lines(data + torn, dict[str, object]), 1):
        try:
            if isinstance(record, DocumentError):
                raise record
            if not record.get("event"):
                shown = {k: math.nan if v is None else v for k, v in record.items()}
                found.epochs.append(typed(shown, EpochRecord))
            elif record["event"] == "prune":
                found.cuts.append(typed(record, PruneRecord))
            elif record["event"] == "quantize":
                found.quantised = typed(record, QuantizeRecord)
            found.skipped += record.get("event") == "skipped"
        except DocumentError:
            damaged.append(str(number))
    if lost := [record.epoch + 1 for record in found.epochs if _not_finite(record)]:
        which = f"epochs {', '.join(map(str, lost))}" if len(lost) > 1 else f"epoch {lost[0]}"
        notes.append(f"Metrics of {which} are not finite and left out.")
    if damaged:
        lines = f"lines {', '.join(damaged)} are" if len(damaged) > 1 else f"line {damaged[0]} is"
        notes.append(f"metrics.jsonl: {lines} damaged and left out.")
    return found


def _not_finite(record: EpochRecord) -> bool:
    figures = (record.lr, record.train_loss, record.val_log_loss)
    return not all(map(math.isfinite, (*figures, record.val_macro_accuracy, record.val_accuracy)))
