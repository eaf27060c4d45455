"""`cpprune train`: the training loop, then the report of the finished run."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from cpprune.cli.output import message
from cpprune.config import ParsedRun, build_parser, parse
from shards.launcher import process_rank

FLAGS = {
    "json": "print the result as one JSON object on standard output",
    "debug": "one process, a few clips: overfit one batch, print shapes, show tracebacks",
}


def train(argv: list[str]) -> int:
    """Train a network."""
    text = "Train a network. With prune.ratio or prune.budget, it is pruned while it is trained."
    return run(parse(build_parser("cpprune train", text, FLAGS), argv, list(FLAGS)))


def run(parsed: ParsedRun) -> int:
    """Train, or overfit one batch with --debug; return the exit status."""
    if parsed.switches["debug"]:
        from cpprune.training.overfit import overfit

        return overfit(parsed.config, parsed.explicit)
    from cpprune.runs.records import RunResult, record_json
    from cpprune.training.loop import train as run_training

    result = run_training(parsed.config, parsed.explicit, as_command=True)
    if process_rank():
        return 0
    if isinstance(result, RunResult):
        write_run_report(parsed.config.run, parsed.config.data.path)
    if parsed.switches["json"]:
        print(record_json(result))
    return 0


def write_run_report(folder: str, data: str, *, anew: bool = False) -> None:
    """Write the report of a finished run unless it has one that is younger than its last epoch.

    A report that cannot be made is one line of warning: the run itself is complete.

    Args:
        folder: of the run.
        data: its dataset, with the credentials that the run's own configuration leaves out.
        anew: write it whatever its age.
    """
    from cpprune.report.run_report import PAGE, write_report

    path, last = Path(folder) / PAGE, Path(folder) / "model_last/model.json"
    try:
        if anew or not path.is_file() or path.stat().st_mtime_ns < last.stat().st_mtime_ns:
            write_report([Path(folder)], data=data)
        message(f"report: {path}")
    except Exception as error:  # nothing that goes wrong here may fail the run
        reason = " ".join(str(error).split()) or repr(error)
        message(
            f"cpprune: warning: {folder}: no report was made ({reason}); try: "
            f"cpprune report {quote(folder)}"
        )
