"""The report of a run: `RUN/report.html`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cpprune.export.exported import OnDisk, read_exported
from cpprune.models.quantized import is_quantized
from cpprune.report import network, sections
from cpprune.report.evaluation import Evaluation, evaluate_run
from cpprune.report.exports import exports_section, weights_of
from cpprune.report.page import Document, render
from cpprune.report.run_folder import Run, read_run, times
from cpprune.runs.contents import RUN
from cpprune.runs.records import Validation
from shards.errors import UserError
from shards.files.atomic import check_output, replace_file, write_output, writing
from shards.files.documents import typed
from shards.files.locks import locked
from shards.files.ownership import claim

PAGE = "report.html"
MISTAKES = 6


def report_document(
    folder: Path,
    *,
    data: str | None = None,
    split: str = "val",
    mistakes: int = MISTAKES,
    exports: Sequence[OnDisk] = (),
) -> Document:
    """Return the report of a run.

    Args:
        folder: of the run.
        data: dataset to evaluate on; None: that of the run.
        split: train, val or test.
        mistakes: number of misclassified clips to include.
        exports: exported models of the run, beside those in its folder.

    Raises:
        UserError: the folder is not a run.
    """
    run = read_run(folder)
    evaluation = evaluate_run(run, data, split, mistakes)
    costs = network.model_costs(run)
    parts = [
        sections.training_section(run, evaluation),
        sections.curves_section(run),
        sections.predictions_section(run, evaluation),
        sections.calibration_section(evaluation),
        network.network_section(run, costs),
        network.limits_section(run, costs),
        exports_section(run, evaluation, exports),
        sections.mistakes_section(evaluation),
        sections.throughput_section(run),
        sections.environment_section(run),
    ]
    return Document(run.name, _subtitle(run), _tiles(run, costs, evaluation), run.notes, parts)


def _subtitle(run: Run) -> str:
    if run.model is None:
        failed = "A failed run without a model."
        return failed if run.failed else "A run without a model yet."
    state = "A finished" if run.finished else "A failed" if run.failed else "An unfinished"
    how = "fine-tuned" if run.settings.get("init") else "trained from scratch"
    cuts = f", pruned {times(len(run.cuts))}" if run.cuts else ""
    form = ", quantised (int8)" if is_quantized(run.model.network) else ""
    return (
        f"{state} run: {run.model.family} for {len(run.model.classes)} classes, {how}{cuts}{form}."
    )


def _tiles(
    run: Run, costs: network.Costs | None, evaluation: Evaluation | str
) -> list[tuple[str, str]]:
    if run.model is None or run.origin is None or costs is None:
        return []
    tiles = [
        ("parameters", f"{costs.total['parameters']:,}"),
        ("MACs of one clip", f"{costs.total['macs']:,}"),
        *network.operations_fact(costs.total),
        ("best epoch", f"{run.origin.provenance.epoch + 1} of {run.settings.get('train.epochs')}"),
    ]
    if isinstance(evaluation, Evaluation):
        split, metrics = evaluation.split, typed(evaluation.metrics, Validation)
    else:
        split, metrics = "val", run.origin.metrics.val
    return [
        (f"macro accuracy, {split}", _figure(metrics.macro_accuracy)),
        (f"log loss, {split}", _figure(metrics.log_loss)),
        *tiles,
    ]


def _by_run(folders: Sequence[Path], exports: Sequence[Path]) -> dict[Path, list[OnDisk]]:
    """Return the exported models of each run; raise UserError if one is of none."""
    weights = {folder: weights_of(folder) for folder in folders}
    found: dict[Path, list[OnDisk]] = {folder: [] for folder in folders}
    for path in exports:
        one = read_exported(path)
        own = [folder for folder in folders if weights[folder] == one.weights_sha256]
        if not own:
            runs = ", ".join(map(str, folders))
            raise UserError(
                f"--exports {path}: was not made from the model of {runs}: export that again, or name "
                "the run that it was made from"
            )
        for folder in own:
            found[folder].append(one)
    return found


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    data: str | None = None,
    split: str = "val",
    mistakes: int = MISTAKES,
    exports: Sequence[Path] = (),
) -> list[Path]:
    """Write the reports of runs, each into its folder, or all on one page.

    Args:
        folders: of the runs.
        out: the common page; None: RUN/report.html for each run.
        data: see `report_document`.
        split: see `report_document`.
        mistakes: see `report_document`.
        exports: exported models of the runs, beside those in their folders.

    Returns:
        The pages that were written.

    Raises:
        UserError: a folder is not a run, an exported model is not of one of them, or a page cannot be
            written.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    pages = [out] if out is not None else [folder / PAGE for folder in folders]
    with ExitStack() as held:
        for path, folder in zip(pages, folders, strict=False):
            if out is None:
                read_run(folder)  # raises if it is not a run
                claim(folder, replace(RUN, parts=(PAGE,)))
            check_output(path, "" if out is None else "--out")
            if not path.exists() or path.is_file():
                busy = f"{path}: another report is writing it"
                held.enter_context(locked(path.parent / f".{path.name}.lock", busy))
        named = _by_run(folders, exports)
        documents = [
            report_document(
                folder, data=data, split=split, mistakes=mistakes, exports=named[folder]
            )
            for folder in folders
        ]
        if out is not None:
            title = ", ".join(document.title for document in documents)
            write_output(out, render(title, documents).encode(), "--out")
            return pages
        for path, document in zip(pages, documents, strict=True):
            with writing(path):
                replace_file(path, path.parent, render(document.title, [document]).encode())
    return pages
