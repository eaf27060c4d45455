"""`cpprune summarise`: mean and standard deviation over evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

from msgspec import to_builtins

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import table
from cpprune.evaluation.statistics import Spread, spread
from shards.errors import UserError
from shards.files.atomic import check_output, write_output
from shards.files.documents import DocumentError, read_json, to_json, typed


def summarise(argv: list[str]) -> int:
    """Print the mean and standard deviation of every metric of several evaluations."""
    parser = OneLineParser(
        "cpprune summarise",
        description="Mean and sample standard deviation of every metric over several evaluations, such "
        "as those of runs that differ in the seed.",
    )
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="output of `cpprune evaluate --json`"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON object to this file")
    arguments = parser.parse_args(argv)
    if arguments.out:
        check_output(arguments.out, "--out")
    reports = [read_report(path) for path in arguments.files]
    figures = all_spreads(reports)
    text = to_json(
        {"files": [str(path) for path in arguments.files], "figures": to_builtins(figures)}
    )
    if arguments.out:
        write_output(arguments.out, f"{text}\n".encode(), "--out")
    if arguments.json:
        print(text)
        return 0
    print(f"{len(reports)} evaluations: mean ± sample standard deviation\n")
    print(table(["metric", "value"], [_row(*item) for item in figures.items()]))
    return 0


def _row(name: str, found: Spread) -> list[str]:
    deviation = "" if found.deviation is None else f" ± {found.deviation:.4g}"
    return [name, f"{found.mean:.6g}{deviation}"]


class _Evaluation(TypedDict):
    """Metrics of an evaluation."""

    macro_accuracy: float | None
    accuracy: NotRequired[float | None]
    log_loss: NotRequired[float | None]


def read_report(path: Path) -> dict[str, object]:
    """Read the output of `cpprune evaluate --json`.

    Raises:
        UserError: the file is missing or holds something else, or metrics that are not finite.
    """
    remedy = "give files with the output of `cpprune evaluate --json`"
    # Older versions wrote NaN where null stands now.
    report = read_json(path, dict[str, object], nan=True, remedy=remedy)
    try:
        typed(report, _Evaluation)
    except DocumentError as error:
        raise UserError(f"{path}: {error}; {remedy}") from None
    if any(report.get(name, 0.0) is None for name in ("macro_accuracy", "accuracy", "log_loss")):
        raise UserError(
            f"{path}: its metrics are not finite, since the training of the model diverged: train "
            "again, with a lower optim.lr or with train.clip_norm"
        )
    return report


def all_spreads(reports: list[dict[str, object]]) -> dict[str, Spread]:
    """Return the spread of every metric that all reports have.

    Metrics are named as in `per_class.bus.accuracy`; lists, such as the confusion matrix, are left
    out.
    """
    flat = [_metrics(report) for report in reports]
    names = [name for name in flat[0] if all(name in metrics for metrics in flat)]
    return {name: spread([metrics[name] for metrics in flat]) for name in names}


def _metrics(tree: dict[str, object], prefix: str = "") -> dict[str, float]:
    metrics: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            metrics |= _metrics(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            metrics[prefix + key] = value
    return metrics
