"""The report of a run: `RUN/report.html`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from shlex import quote

from cpprune.report import network, sections
from cpprune.report.measured import Measured, measure
from cpprune.report.page import Document, render
from cpprune.report.runs import Run, read_run, times
from cpprune.runs.contents import RUN
from shards.files.atomic import check_output, replace_file, write_output, writing
from shards.files.locks import locked
from shards.files.ownership import claim

PAGE = "report.html"
MISTAKES = 6


def report_document(
    folder: Path, *, data: str | None = None, split: str = "val", mistakes: int = MISTAKES
) -> Document:
    """Return all there is to say of a run.

    Args:
        folder: of the run.
        data: dataset to measure on; that of the run if None.
        split: train, val or test.
        mistakes: how many to show.

    Raises:
        InputError: the folder is no run.
    """
    run = read_run(folder)
    measured = measure(run, data, split, mistakes)
    costs = network.model_costs(run)
    parts = [
        sections.training_section(run, measured),
        sections.curves_section(run),
        sections.result_section(run, measured),
        sections.calibration_section(measured),
        network.network_section(run, costs),
        network.limits_section(run, costs),
        sections.mistakes_section(measured),
        sections.machine_section(run),
        sections.environment_section(run),
    ]
    return Document(run.name, _subtitle(run), _tiles(run, costs, measured), run.notes, parts)


def _subtitle(run: Run) -> str:
    if run.model is None:
        failed = "A failed run of cpprune without a model."
        return failed if run.failed else "A run of cpprune without a model yet."
    state = "A finished" if run.result else "A failed" if run.failed else "An unfinished"
    how = "fine-tuned" if run.settings.get("init") else "trained from fresh weights"
    cuts = f", pruned {times(len(run.cuts))}" if run.cuts else ""
    return (
        f"{state} run of cpprune: {run.model.family} for {len(run.model.classes)} classes, "
        f"{how}{cuts}."
    )


def _tiles(
    run: Run, costs: network.Costs | None, measured: Measured | str
) -> list[tuple[str, str]]:
    if run.model is None or costs is None:
        return []
    tiles = [
        ("parameters", f"{costs.total['parameters']:,}"),
        ("MACs of one clip", f"{costs.total['macs']:,}"),
        ("best epoch", f"{run.about['epoch'] + 1} of {run.settings.get('train.epochs')}"),
    ]
    if isinstance(measured, Measured):
        figures, split = measured.figures, measured.split
    else:
        figures, split = run.model.metadata["metrics"]["val"], "val"
    return [
        (f"macro accuracy, {split}", _figure(figures["macro_accuracy"])),
        (f"log loss, {split}", _figure(figures["log_loss"])),
        *tiles,
    ]


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    data: str | None = None,
    split: str = "val",
    mistakes: int = MISTAKES,
) -> list[Path]:
    """Write the reports of runs, each into its folder or all onto one page.

    Args:
        folders: of the runs.
        out: the one page; None writes RUN/report.html for each.
        data: see `report_document`.
        split: likewise.
        mistakes: likewise.

    Returns:
        What was written.

    Raises:
        InputError: a folder is no run, or a page cannot be written.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    pages = [out] if out is not None else [folder / PAGE for folder in folders]
    with ExitStack() as held:
        for path, folder in zip(pages, folders, strict=False):
            if out is None:
                read_run(folder)  # says so of what is no run
                claim(folder, replace(RUN, parts=(PAGE,)))
            check_output(path, "" if out is None else "--out")
            if not path.exists() or path.is_file():
                busy = f"{path}: another report is writing it"
                held.enter_context(locked(path.parent / f".{path.name}.lock", busy))
        documents = [
            report_document(folder, data=data, split=split, mistakes=mistakes) for folder in folders
        ]
        if out is not None:
            title = ", ".join(document.title for document in documents)
            write_output(out, render(title, documents).encode(), "--out")
            return pages
        for path, document in zip(pages, documents, strict=True):
            with writing(path):
                replace_file(path, path.parent, render(document.title, [document]).encode())
    return pages


def report_after_training(folder: str, data: str) -> None:
    """Write the report of a finished run, if it has none yet that is younger than its last epoch.

    The address of its data is given, since what is secret in it is not in the run's configuration.
    The run must not fail for the report's sake: whatever goes wrong is one line of warning.
    """
    path, last = Path(folder) / PAGE, Path(folder) / "model_last/model.json"
    try:
        if not path.is_file() or path.stat().st_mtime_ns < last.stat().st_mtime_ns:
            write_report([Path(folder)], data=data)
        print(f"report: {path}", file=sys.stderr, flush=True)
    except Exception as error:  # whatever it is, the run itself is done and well
        reason = " ".join(str(error).split()) or repr(error)
        print(
            f"cpprune: warning: {folder}: no report was made ({reason}); try: "
            f"cpprune report {quote(folder)}",
            file=sys.stderr,
            flush=True,
        )
