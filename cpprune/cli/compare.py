"""`cpprune compare`: runs side by side, in the terminal or on an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import to_builtins

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import message, table
from shards.files.atomic import check_output, write_output
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.report.comparison import Comparison


def compare(argv: list[str]) -> int:
    """Show runs side by side."""
    parser = OneLineParser(
        "cpprune compare",
        description="Runs side by side: accuracy against parameters and MACs. Runs that differ only in "
        "the seed form a group, with mean and standard deviation; groups are compared by paired tests.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--split", default="val", help="train, val or test; val needs no data (default: val)"
    )
    parser.add_argument("--data", help="dataset to evaluate on (default: that of each run)")
    parser.add_argument(
        "--reference", action="store_true", help="also show the results of the seed project"
    )
    parser.add_argument("--out", type=Path, help="also write an HTML page with plots to this file")
    arguments = parser.parse_args(argv)

    from cpprune.report.compare_page import comparison_document
    from cpprune.report.comparison import compare_runs, with_reference
    from cpprune.report.page import render

    if arguments.out:
        check_output(arguments.out, "--out")
    found = compare_runs(arguments.runs, split=arguments.split, data=arguments.data)
    if arguments.reference:
        found = with_reference(found)
    if arguments.out:
        document = comparison_document(found)
        write_output(arguments.out, render(document.title, [document]).encode(), "--out")
        message(f"comparison: {arguments.out}")
    print(to_json(to_builtins(found)) if arguments.json else _text(found))
    return 0


def _text(found: Comparison) -> str:
    """Return the groups, the tests and the notes."""
    from cpprune.report.compare_page import mean_and_deviation

    head = ["group", "runs", "parameters", "MACs", f"macro acc. {found.split}", "log loss", ""]
    rows = [
        [
            group.name,
            str(len(group.runs)),
            f"{group.parameters:,}",
            f"{group.macs:,}",
            *map(mean_and_deviation, (group.macro_accuracy, group.log_loss)),
            "*" if any(group.pareto.values()) else "",
        ]
        for group in found.groups
    ]
    rows += [
        [
            f"{row.name} (reported)",
            "–",
            f"{row.parameters:,}",
            f"{row.macs:,}",
            f"{row.macro_accuracy:.5f}",
            f"{row.log_loss:.5f}",
            "",
        ]
        for row in found.reported
    ]
    lines = [table(head, rows), "* on the Pareto front of parameters or MACs"]
    for test in found.tests:
        figure, p = test.macro_accuracy, "the same for every seed"
        if figure.p is not None:
            p = f"p {figure.p:.4f}, Holm {figure.p_holm:.4f}"
        lines.append(
            f"{test.one} − {test.other}: macro accuracy {figure.difference:+.4f} ± "
            f"{figure.deviation:.4f} ({p}, {len(test.seeds)} seeds)"
        )
    return "\n".join([*lines, *found.notes])
