"""`cpprune sweep`: a resumable hyper-parameter sweep, without a server."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import to_builtins

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import message, table
from cpprune.sweeps.definition import Sweep, read_sweep
from shards.cli.arguments import whole_number
from shards.errors import UserError
from shards.files.atomic import writing
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.sweeps.results import SweepResults


def sweep(argv: list[str]) -> int:
    """Run trials until none is left; print the results."""
    own, settings = _split(argv)
    parser = OneLineParser(
        "cpprune sweep",
        description="Start or resume a hyper-parameter sweep in wandb's format, without a server. "
        "Several processes may run its trials, on one machine or on several that share its folder. "
        "Arguments after -- are added to the command of every trial.",
    )
    parser.add_argument("file", type=Path, help="sweep, such as configs/sweeps/criterion.yaml")
    parser.add_argument("--out", type=Path, help="folder of the sweep (default: runs/sweeps/NAME)")
    parser.add_argument(
        "--trials",
        type=whole_number,
        help="number of trials in all (default: run_cap of the file)",
    )
    parser.add_argument("--retry", action="store_true", help="run failed trials again")
    arguments = parser.parse_args(own)
    defined = read_sweep(arguments.file)
    if not Path(defined.program).is_file():
        raise UserError(
            f"{arguments.file}: program: there is no {defined.program} in this folder; run the command "
            "in the repository"
        )
    if arguments.trials is not None and arguments.trials < 1:
        raise UserError(f"--trials {arguments.trials}: must be at least 1")
    folder = arguments.out or Path("runs/sweeps") / arguments.file.stem
    with writing(folder, "--out"):
        return _run(defined, folder, settings, arguments.trials, arguments.retry, arguments.json)


def _split(argv: list[str]) -> tuple[list[str], tuple[str, ...]]:
    if "--" not in argv:
        return argv, ()
    at = argv.index("--")
    return argv[:at], tuple(argv[at + 1 :])


def _run(
    defined: Sweep,
    folder: Path,
    settings: tuple[str, ...],
    trials: int | None,
    retry: bool,
    as_json: bool,
) -> int:
    from cpprune.evaluation.plots import require_matplotlib
    from cpprune.sweeps.agent import Agent
    from cpprune.sweeps.definition import grid_size
    from cpprune.sweeps.parameters import LOGARITHMIC
    from cpprune.sweeps.plot import draw_sweep
    from cpprune.sweeps.results import collect, write_csv
    from cpprune.sweeps.study import SharedStudy

    require_matplotlib("cpprune sweep")
    limit = trials or defined.run_cap
    if defined.method == "grid":
        limit = min(limit or grid_size(defined), grid_size(defined))
    if limit is None:
        raise UserError(
            f"method {defined.method} never ends: give --trials N, or run_cap in the file"
        )
    study = SharedStudy(folder, defined, settings)
    if retry:
        study.retry()
    try:
        why = Agent(study, settings, limit, message).work()
    finally:
        found = collect(study)
        with study.transaction():
            write_csv(found, folder / "results.csv")
    if found.best:
        logarithmic = {p.name for p in defined.parameters if p.distribution in LOGARITHMIC}
        draw_sweep(found, logarithmic, folder / "sweep.png")
    found = replace(found, stopped=why or None)
    print(to_json(to_builtins(found)) if as_json else trials_table(found))
    _summarise(found, folder, why)
    if why in signal.Signals.__members__:
        return 128 + signal.Signals[why]
    failed = [trial for trial in found.trials if trial.state == "failed"]
    if failed and len(failed) == len(found.trials) and not why:
        last = max(failed, key=lambda trial: trial.number)
        raise UserError(
            f"{folder}: all {len(failed)} trials failed, the last with: {last.error}; fix it, then "
            "repeat the command with --retry"
        )
    return 1 if why else 0


def trials_table(found: SweepResults) -> str:
    """Return what `collect` found as a table, the best trial first."""
    if not found.trials:
        return "no trial has begun"
    names = list(found.trials[0].arguments)
    head = ["trial", found.metric, "epoch", "parameters", "MACs", *names, "state"]
    rows = [
        [
            f"{trial.number:04d}",
            *map(_cell, (trial.value, trial.epoch, trial.parameters, trial.macs)),
            *map(_cell, trial.arguments.values()),
            trial.state + (f": {trial.error}" if trial.error else ""),
        ]
        for trial in found.trials
    ]
    return table(head, rows)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _summarise(found: SweepResults, folder: Path, why: str) -> None:
    """Print the best trial, the files, and what is left to do."""
    states = [trial.state for trial in found.trials]
    if found.best:
        message(f"best: {found.best.run}/model, {found.metric} {found.best.value:.6g}")
    message(f"{folder}: results.csv" + (", sweep.png" if found.best else ""))
    for state, what in (
        ("running", "running in other processes"),
        ("failed", "failed: --retry runs them again"),
    ):
        if state in states:
            message(f"{states.count(state)} of {len(states)} trials: {what}")
    if why:
        message(f"stopped by {why}; everything is saved: the same command resumes")
