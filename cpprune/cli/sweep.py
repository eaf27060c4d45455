"""`cpprune sweep`: many runs over a space of settings, without a server."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from cpprune.cli.arguments import OneLineParser
from cpprune.sweeps.agent import say
from cpprune.sweeps.definition import Sweep, read_sweep
from shards.cli.arguments import whole_number
from shards.errors import InputError
from shards.files.atomic import writing
from shards.files.documents import to_json


def sweep(argv: list[str]) -> int:
    """Run trials until none is left; print what was found."""
    own, settings = _split(argv)
    parser = OneLineParser(
        "cpprune sweep",
        description="Run a sweep in wandb's format without a server, or go on with it. Several "
        "processes may work at it, also on several machines that share its folder. Words after -- are "
        "added to the command of every trial.",
    )
    parser.add_argument("file", type=Path, help="a sweep, such as configs/sweeps/criterion.yaml")
    parser.add_argument("--out", type=Path, help="folder of the sweep (default: runs/sweeps/NAME)")
    parser.add_argument(
        "--trials",
        type=whole_number,
        help="how many there are in all (default: the file's run_cap)",
    )
    parser.add_argument("--retry", action="store_true", help="try those again that failed")
    arguments = parser.parse_args(own)
    defined = read_sweep(arguments.file)
    if not Path(defined.program).is_file():
        raise InputError(
            f"{arguments.file}: program: there is no {defined.program} in this folder; go to that of "
            "the repository"
        )
    if arguments.trials is not None and arguments.trials < 1:
        raise InputError(f"--trials {arguments.trials}: must be at least 1")
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
    from cpprune.sweeps.board import Board, grid_size
    from cpprune.sweeps.parameters import LOGARITHMIC
    from cpprune.sweeps.picture import draw_sweep
    from cpprune.sweeps.results import collect, table, write_csv

    require_matplotlib("cpprune sweep")
    limit = trials or defined.run_cap
    if defined.method == "grid":
        limit = min(limit or grid_size(defined), grid_size(defined))
    if limit is None:
        raise InputError(
            f"method {defined.method} has no end: give --trials N, or run_cap in the file"
        )
    board = Board(folder, defined, settings)
    if retry:
        board.retry()
    try:
        why = Agent(board, settings, limit).work()
    finally:
        found = collect(board)
        with board.transaction():
            write_csv(found, folder / "results.csv")
    if found["best"]:
        logarithmic = {p.name for p in defined.parameters if p.distribution in LOGARITHMIC}
        draw_sweep(found, logarithmic, folder / "sweep.png")
    found["stopped"] = why or None
    print(to_json(found) if as_json else table(found))
    _say_end(found, folder, why)
    if why in signal.Signals.__members__:
        return 128 + signal.Signals[why]
    failed = [trial for trial in found["trials"] if trial["state"] == "failed"]
    if failed and len(failed) == len(found["trials"]) and not why:
        last = max(failed, key=lambda trial: int(trial["number"]))
        raise InputError(
            f"{folder}: all {len(failed)} trials failed, the last with: {last['error']}; mend it, then "
            "give the same command with --retry"
        )
    return 1 if why else 0


def _say_end(found: dict[str, Any], folder: Path, why: str) -> None:
    """Say what came out, where it lies, and what is left to do."""
    states = [trial["state"] for trial in found["trials"]]
    if found["best"]:
        best = found["best"]
        say(f"best: {best['run']}/model, {found['metric']} {best['value']:.6g}")
    say(f"{folder}: results.csv" + (", sweep.png" if found["best"] else ""))
    for state, what in (
        ("running", "run by other processes"),
        ("failed", "failed: --retry tries them again"),
    ):
        if state in states:
            say(f"{states.count(state)} of {len(states)} trials: {what}")
    if why:
        say(f"stopped by {why}; everything is saved: the same command goes on")
