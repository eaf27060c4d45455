"""What a run's model ships as: exported models in its folder, or named, and measured for the report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpprune.evaluation.predict import predict_clips
from cpprune.export.check import Accuracies, Accuracy, accuracy, latencies, median_ms
from cpprune.export.classifier import precision
from cpprune.export.exported import OnDisk, is_exported, read_exported, storage
from cpprune.models import artifact
from cpprune.models.quantized import is_quantized
from cpprune.report.evaluation import Evaluation
from cpprune.report.page import Block, Cell, Section, Table, Text, count, decimal
from cpprune.report.run_folder import Run
from shards.errors import UserError

TITLE = "Ships as"
NONE = Cell("–")
HEAD = ["file", "as", "bytes", "RAM", "accuracy (95 %)", "of the model", "same class", "ms"]
HEAD += ["of torch", "measured on"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How an exported model does on clips of a split, beside its model folder."""

    accuracy: Accuracies
    agreement: float
    ms: float
    ms_of_torch: float
    clips: int
    split: str


def weights_of(folder: Path) -> str | None:
    """Return the SHA-256 of the weights of a run's model; None without a model."""
    try:
        return str(artifact.read_description(folder / "model")["weights"]["sha256"])
    except (UserError, KeyError, TypeError):
        return None


def exports_section(
    run: Run, evaluation: Evaluation | str, named: Sequence[OnDisk] = ()
) -> Section:
    """Return the exported models of a run: size, accuracy, agreement with the model folder, latency.

    Files are evaluated on the clips of the report. Code in a folder is not run: what `--check` measured
    when it was exported is shown.

    Args:
        run: whose folder is searched.
        evaluation: of its model.
        named: further ones, made from its model.
    """
    if run.model is None:
        return Section(TITLE, [Text("There is no model yet.")])
    found, left_out = _in_folder(run, {one.path.resolve() for one in named})
    rows, shown = [], [*found, *named]
    for one in shown:
        try:
            rows.append(_row(one, _measure(run, one, evaluation)))
        except UserError as error:
            left_out.append(f"{one.path.name} is left out: {error}.")
    blocks: list[Block] = [Text(sentence) for sentence in left_out]
    if not rows:
        where = run.folder / "model", run.folder / f"{run.name}.onnx"
        model, out = (shlex.quote(str(path)) for path in where)
        hint = "No exported model is in the run's folder, where reports look for it. To add one:"
        form = " --precision int8" if is_quantized(run.model.network) else ""
        blocks += [Text(hint), Text(f"cpprune export {model} --out {out}{form}", code=True)]
        return Section(TITLE, blocks)
    rows.insert(0, _model_row(run, evaluation))
    text = (
        "Front end included. Accuracy is that of the exported model, with Wilson's 95 % interval; "
        "beside it that of the model folder on the same clips, and the share of them to which both give "
        "the same class. ms: median for one clip on one thread of "
        "the CPU, and beside it that of torch, measured in turns."
    )
    if isinstance(evaluation, str):
        text += f" {evaluation}"
    if any(one.model is None for one in shown):
        text += (
            " For a folder of code, bytes are flash, and the figures are those of cpprune export "
            "--check, compiled for the computer that it ran on."
        )
    blocks += [Text(text), Table("Exported models", HEAD, rows)]
    return Section(TITLE, blocks)


def _in_folder(run: Run, known: set[Path]) -> tuple[list[OnDisk], list[str]]:
    """Return the exported models in a run's folder, and a sentence for each that is left out."""
    found, left_out = [], []
    weights = weights_of(run.folder)
    for path in sorted(run.folder.iterdir()):
        if path.resolve() in known or not is_exported(path):
            continue
        try:
            one = read_exported(path)
        except UserError as error:
            left_out.append(f"{path.name} is left out: {error}.")
            continue
        if one.weights_sha256 == weights:
            found.append(one)
        else:
            left_out.append(
                f"{path.name} is left out: it was made from another model than the run has now; export "
                "it again."
            )
    return found, left_out


def _measure(run: Run, one: OnDisk, evaluation: Evaluation | str) -> Measured | None:
    """Return how an exported model does on the clips of the report, or did when it was exported."""
    if one.check:
        check = one.check
        return Measured(
            accuracy=check.accuracy,
            agreement=check.agreement,
            ms=check.latency_ms.exported,
            ms_of_torch=check.latency_ms.model,
            clips=check.clips,
            split=check.split,
        )
    if one.model is None or run.model is None or isinstance(evaluation, str):
        return None
    split = evaluation.dataset.split(evaluation.split)
    predicted = predict_clips(one.model.logits, split).argmax(1)
    times = latencies(run.model.cpu(), one.model)
    return Measured(
        accuracy=Accuracies(
            model=accuracy(evaluation.predicted, split.labels),
            exported=accuracy(predicted, split.labels),
        ),
        agreement=float((predicted == evaluation.predicted).mean()),
        ms=times.exported,
        ms_of_torch=times.model,
        clips=len(split),
        split=split.name,
    )


def _model_row(run: Run, evaluation: Evaluation | str) -> list[Cell]:
    """Return the row of the model folder, which the others are compared with."""
    assert run.model is not None
    size = (run.folder / "model/model.safetensors").stat().st_size
    row = [Cell("model"), Cell(f"torch {precision(run.model)}"), count(size), NONE]
    if isinstance(evaluation, str):
        return [*row, *(NONE,) * 6]
    labels = evaluation.dataset.split(evaluation.split).labels
    own = accuracy(evaluation.predicted, labels)
    where = f"{len(labels):,} clips of {evaluation.split}"
    ms = decimal(median_ms(run.model.cpu()), 2)
    figures = [_accuracy(own), decimal(own.accuracy), Cell("100.0%", 1.0), ms, ms]
    return [*row, *figures, Cell(where)]


def _row(one: OnDisk, measured: Measured | None) -> list[Cell]:
    size = one.bytes
    row = [
        Cell(one.path.name),
        Cell(f"{one.target} {one.precision}"),
        count(storage(size)),
        count(size["ram"]) if "ram" in size else NONE,
    ]
    if measured is None:
        return [*row, *(NONE,) * 6]
    return [
        *row,
        _accuracy(measured.accuracy.exported),
        decimal(measured.accuracy.model.accuracy),
        Cell(f"{measured.agreement:.1%}", measured.agreement),
        decimal(measured.ms, 2),
        decimal(measured.ms_of_torch, 2),
        Cell(f"{measured.clips:,} clips of {measured.split}"),
    ]


def _accuracy(found: Accuracy) -> Cell:
    text = f"{found.accuracy:.4f} ({found.low:.3f} to {found.high:.3f})"
    return Cell(text, found.accuracy)
