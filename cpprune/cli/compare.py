"""`cpprune compare`: runs side by side, in the terminal or on an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import message, table
from shards.files.atomic import check_output, write_output
from shards.files.documents import to_json


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
        message(f"comparison: {arguments.out}")
    print(to_json(found) if arguments.json else _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    """Return the groups, the tests and the notes."""
    from cpprune.report.compare_page import mean_and_deviation
    from cpprune.report.comparison import METRICS

    head = ["group", "runs", "parameters", "MACs", f"macro acc. {found['split']}", "log loss", ""]
    rows = [
        [
            group["name"],
            str(len(group["runs"])),
            f"{group['parameters']:,}",
            f"{group['macs']:,}",
            *(mean_and_deviation(group[key]) for key in METRICS),
            "*" if any(group["pareto"].values()) else "",
        ]
        for group in found["groups"]
    ]
    rows += [
        [
            f"{row['name']} (reported)",
            "–",
            f"{row['parameters']:,}",
            f"{row['macs']:,}",
            *(f"{row[key]:.5f}" for key in METRICS),
            "",
        ]
        for row in found.get("reference", {}).get("rows", [])
    ]
    lines = [table(head, rows), "* on the Pareto front of parameters or MACs"]
    for test in found["tests"]:
        figure = test["macro_accuracy"]
        p = (
            "the same for every seed"
            if figure["p"] is None
            else f"p {figure['p']:.4f}, Holm {figure['p_holm']:.4f}"
        )
        lines.append(
            f"{test['one']} − {test['other']}: macro accuracy {figure['difference']:+.4f} ± "
            f"{figure['deviation']:.4f} ({p}, {len(test['seeds'])} seeds)"
        )
    return "\n".join([*lines, *found["notes"]])
