"""`cpprune report`: HTML reports of runs."""

from __future__ import annotations

from pathlib import Path

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import message
from shards.cli.arguments import whole_number
from shards.errors import UserError
from shards.files.documents import to_json


def report(argv: list[str]) -> int:
    """Write the reports of runs."""
    parser = OneLineParser(
        "cpprune report",
        description="HTML report of a run, made from its folder: curves, accuracies, confusion matrix, "
        "costs and the most confident mistakes, in one file that opens offline. Training writes it too, "
        "as RUN/report.html.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--data", help="dataset to evaluate on (default: that of the run)")
    parser.add_argument("--split", default="val", help="train, val or test (default: val)")
    parser.add_argument(
        "--mistakes",
        type=whole_number,
        default=6,
        help="how many misclassified clips to include; 0: none (default: 6)",
    )
    parser.add_argument(
        "--exports",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="exported models to show, beside those in the run folders",
    )
    parser.add_argument(
        "--out", type=Path, help="one page for all runs (default: report.html in each run folder)"
    )
    arguments = parser.parse_args(argv)
    if arguments.mistakes < 0:
        raise UserError(f"--mistakes {arguments.mistakes}: must not be negative")

    from cpprune.report.run_report import write_report

    pages = write_report(
        arguments.runs,
        arguments.out,
        data=arguments.data,
        split=arguments.split,
        mistakes=arguments.mistakes,
        exports=arguments.exports,
    )
    if arguments.json:
        print(to_json({"pages": [str(path) for path in pages]}))
    else:
        for path in pages:
            message(f"report: {path}")
    return 0
