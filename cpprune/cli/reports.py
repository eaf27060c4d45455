"""`cpprune report` and `cpprune compare`: pages about runs."""

from __future__ import annotations

import sys
from pathlib import Path

from cpprune.cli.arguments import OneLineParser
from shards.cli.arguments import whole_number
from shards.errors import InputError
from shards.files.atomic import check_output, write_output
from shards.files.documents import to_json


def report(argv: list[str]) -> int:
    """Write the reports of runs."""
    parser = OneLineParser(
        "cpprune report",
        description="A page of all there is to know of a run, made from its folder: one file that opens "
        "without a network. Every finished run has one already, RUN/report.html.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--data", help="dataset to measure on (default: that of the run)")
    parser.add_argument("--split", default="val", help="train, val or test (default: val)")
    parser.add_argument(
        "--mistakes",
        type=whole_number,
        default=6,
        help="clips to show; 0 puts none into the page (6)",
    )
    parser.add_argument(
        "--out", type=Path, help="one page for all (default: report.html in each run's folder)"
    )
    arguments = parser.parse_args(argv)
    if arguments.mistakes < 0:
        raise InputError(f"--mistakes {arguments.mistakes}: must not be negative")

    from cpprune.report.run_report import write_report

    pages = write_report(
        arguments.runs,
        arguments.out,
        data=arguments.data,
        split=arguments.split,
        mistakes=arguments.mistakes,
    )
    if arguments.json:
        print(to_json({"pages": [str(path) for path in pages]}))
    else:
        for path in pages:
            print(f"report: {path}", file=sys.stderr)
    return 0


def compare(argv: list[str]) -> int:
    """Show runs side by side."""
    parser = OneLineParser(
        "cpprune compare",
        description="Runs side by side: accuracy against parameters and MACs. Runs that differ only in "
        "the seed are one group: mean and deviation, and paired tests between groups.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--split", default="val", help="train, val or test; val needs no data (default: val)"
    )
    parser.add_argument("--data", help="dataset to measure on (default: that of each run)")
    parser.add_argument(
        "--reference", action="store_true", help="show also what the seed project reports"
    )
    parser.add_argument("--out", type=Path, help="also write a page with plots to this file")
    arguments = parser.parse_args(argv)

    from cpprune.report.compare_page import comparison_document, terminal_table
    from cpprune.report.comparison import compare_runs, reference
    from cpprune.report.page import render

    if arguments.out:
        check_output(arguments.out, "--out")
    found = compare_runs(arguments.runs, split=arguments.split, data=arguments.data)
    if arguments.reference:
        found["reference"] = reference()
        found["notes"].append(found["reference"]["note"])
    if arguments.out:
        document = comparison_document(found)
        write_output(arguments.out, render(document.title, [document]).encode(), "--out")
        print(f"comparison: {arguments.out}", file=sys.stderr)
    print(to_json(found) if arguments.json else terminal_table(found))
    return 0
