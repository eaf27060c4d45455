"""The results of a sweep: one record per trial, also as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from cpprune.sweeps.study import SharedStudy
from cpprune.sweeps.trial import TrialEpoch, TrialResult, best_epoch, read_epochs, read_result
from shards.files.atomic import replace_file


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial of a sweep (see `study.TrialStatus`) and the metric and costs of its best epoch."""

    number: int
    run: str
    state: str
    value: float | None
    epoch: int | None
    parameters: int | None
    macs: int | None
    arguments: dict[str, object]
    error: str | None


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """The results of a sweep so far, the best trial first; `stopped`: why it stopped early."""

    folder: str
    metric: str
    goal: str
    best: TrialRecord | None
    trials: list[TrialRecord]
    stopped: str | None = None


def collect(study: SharedStudy) -> SweepResults:
    """Return the results so far."""
    metric, goal = study.sweep.metric, study.sweep.goal
    trials = []
    for row in study.status():
        run = study.path(row.number)
        result = read_result(run) or TrialResult()
        best = best_epoch(read_epochs(run)) or TrialEpoch()
        trial = TrialRecord(
            number=row.number,
            run=str(run),
            state=row.state,
            value=best.metric(metric),
            epoch=best.epoch,
            parameters=result.parameters or best.parameters,
            macs=result.macs,
            arguments=row.values,
            error=row.error,
        )
        trials.append(trial)
    trials.sort(key=lambda trial: _rank(trial, goal))
    # A trial that is done may have lost its run folder, and so its value.
    done = (trial for trial in trials if trial.state == "done" and trial.value is not None)
    return SweepResults(
        folder=str(study.folder), metric=metric, goal=goal, best=next(done, None), trials=trials
    )


def _rank(trial: TrialRecord, goal: str) -> tuple[bool, float, int]:
    """Return the sort key: done trials by value, best first, then the others."""
    if trial.state != "done" or trial.value is None:
        return True, 0, trial.number
    return False, -trial.value if goal == "maximize" else trial.value, trial.number


def write_csv(found: SweepResults, path: Path) -> None:
    """Write one row per trial; columns of parameters are named as on the command line."""
    names = list(found.trials[0].arguments) if found.trials else []
    header = ["number", "state", found.metric, "epoch", "parameters", "macs"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, *(f"--{name}" for name in names), "run", "error"])
    for t in found.trials:
        costs = (t.epoch, t.parameters, t.macs)
        writer.writerow([t.number, t.state, t.value, *costs, *t.arguments.values(), t.run, t.error])
    replace_file(path, path.parent, text.getvalue().encode())
