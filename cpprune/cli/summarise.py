"""`cpprune summarise`: mean and deviation of evaluations of the same thing with several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cpprune.cli.arguments import OneLineParser
from cpprune.evaluation.statistics import spread
from shards.errors import InputError
from shards.files.atomic import check_output, write_output
from shards.files.documents import DocumentError, read_json, to_json, typed


def summarise(argv: list[str]) -> int:
    """Print mean ± deviation of every figure of several evaluations."""
    parser = OneLineParser(
        "cpprune summarise",
        description="Mean and sample standard deviation of every figure of several evaluations, such "
        "as those of one training with several seeds.",
    )
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="what `cpprune evaluate --json` printed"
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    if arguments.out:
        check_output(arguments.out, "--out")
    reports = [read_report(path) for path in arguments.files]
    figures = all_spreads(reports)
    text = to_json({"files": [str(path) for path in arguments.files], "figures": figures})
    if arguments.out:
        write_output(arguments.out, f"{text}\n".encode(), "--out")
    if arguments.json:
        print(text)
        return 0
    print(f"{len(reports)} evaluations: mean ± sample standard deviation")
    for name, figure in figures.items():
        deviation = "" if figure["deviation"] is None else f" ± {figure['deviation']:.4g}"
        print(f"{name:<40} {figure['mean']:.6g}{deviation}")
    return 0


class _Figures(TypedDict):
    """What every evaluation has."""

    macro_accuracy: float | None
    accuracy: NotRequired[float | None]
    log_loss: NotRequired[float | None]


def read_report(path: Path) -> dict[str, Any]:
    """Read what `cpprune evaluate --json` printed.

    Raises:
        InputError: the file is missing or holds something else, or figures that are not finite.
    """
    remedy = "give files with what `cpprune evaluate --json` printed"
    # An older version wrote NaN where null stands now.
    report = read_json(path, dict[str, Any], nan=True, remedy=remedy)
    try:
        typed(report, _Figures)
    except DocumentError as error:
        raise InputError(f"{path}: {error}; {remedy}") from None
    if any(report.get(name, 0.0) is None for name in ("macro_accuracy", "accuracy", "log_loss")):
        raise InputError(
            f"{path}: its figures are not finite, since the training of its model diverged: train it "
            "again, with a lower optim.lr or with train.clip_norm"
        )
    return report


def all_spreads(reports: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what `cpprune.evaluation.statistics.spread` says of every figure.

    Figures are named as in `per_class.bus.accuracy`; lists, such as the confusion matrix, are left
    out, and so is what not all reports have.
    """
    flat = [_figures(report) for report in reports]
    names = [name for name in flat[0] if all(name in figures for figures in flat)]
    return {name: spread([figures[name] for figures in flat]) for name in names}


def _figures(tree: dict[str, Any], above: str = "") -> dict[str, float]:
    figures: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            figures |= _figures(value, f"{above}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            figures[above + key] = value
    return figures
