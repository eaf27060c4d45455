"""What `cpprune compare` shows: a table in the terminal, or a page."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from cpprune.report import charts
from cpprune.report.charts import Point
from cpprune.report.comparison import COSTS, FIGURES
from cpprune.report.page import Block, Cell, Document, Figure, Section, Table, Text, count

TITLES = {
    "parameters": "Parameters",
    "macs": "MACs of one clip",
    "macro_accuracy": "macro accuracy",
    "log_loss": "log loss",
}


def comparison_document(found: dict[str, Any]) -> Document:
    """Return the page of a comparison.

    Args:
        found: what `compare_runs` returns, and with it `reference` where that is wanted.
    """
    groups = found["groups"]
    runs = sum(len(group["runs"]) for group in groups)
    sections = [
        Section("Accuracy against cost", [*_plots(found), _groups_table(found)]),
        Section("Differences", _differences(found)),
        Section("Settings that differ", [_settings(groups)]),
    ]
    if "reference" in found:
        sections.append(Section(found["reference"]["title"], [Text(found["reference"]["source"])]))
    return Document(
        "Comparison of runs",
        f"{runs} runs in {len(groups)} groups, whose runs differ in the seed alone; figures of the "
        f"split {found['split']}.",
        [],
        found["notes"],
        sections,
    )


def marks(number: int) -> list[str]:
    """Return short names for so many rows: A to Z, then A1 and so on."""
    rounds = -(-number // len(ascii_uppercase))
    return [f"{c}{n or ''}" for n in range(rounds) for c in ascii_uppercase][:number]


def plus_minus(figure: dict[str, Any], digits: int = 4) -> str:
    """Return mean ± deviation, or the one value."""
    text = f"{figure['mean']:.{digits}f}"
    return text if figure["deviation"] is None else f"{text} ± {figure['deviation']:.{digits}f}"


def _reference_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = found.get("reference", {}).get("rows", [])
    return rows


def _plots(found: dict[str, Any]) -> list[Figure]:
    groups, reported = found["groups"], _reference_rows(found)
    names = marks(len(groups) + len(reported))
    figures = []
    for cost in COSTS:
        points = [
            Point(
                names[n],
                group["name"],
                group[cost],
                group["macro_accuracy"]["mean"],
                group["macro_accuracy"]["deviation"],
                group["pareto"][cost],
            )
            for n, group in enumerate(groups)
        ]
        points += [
            Point(mark, row["name"], row[cost], row["macro_accuracy"], None, False, True)
            for mark, row in zip(names[len(groups) :], reported, strict=True)
        ]
        label = f"Macro accuracy over {TITLES[cost]}; the Pareto front is marked"
        drawing = charts.pareto(label, TITLES[cost], "macro accuracy", points)
        caption = (
            "Filled: on the Pareto front, none is cheaper and as accurate. Lines: ± deviation."
        )
        caption += " Diamonds: reported by others." * bool(reported)
        figures.append(Figure(drawing, caption))
    return figures


def _groups_table(found: dict[str, Any]) -> Table:
    groups, reported = found["groups"], _reference_rows(found)
    names = marks(len(groups) + len(reported))
    head = [
        "",
        "group",
        "runs",
        "parameters",
        "MACs",
        "macro accuracy",
        "log loss",
        "on the front of",
    ]
    rows: list[Sequence[Cell]] = [
        [
            Cell(mark),
            Cell(group["name"]),
            count(len(group["runs"])),
            *(count(group[cost]) for cost in COSTS),
            *(Cell(plus_minus(group[key]), group[key]["mean"]) for key in FIGURES),
            Cell(", ".join(cost for cost in COSTS if group["pareto"][cost]) or "–"),
        ]
        for mark, group in zip(names, groups, strict=False)
    ]
    rows += [
        [
            Cell(mark),
            Cell(f"{row['name']} (reported)"),
            Cell("–", 0),
            *(count(row[cost]) for cost in COSTS),
            *(Cell(f"{row[key]:.5f}", row[key]) for key in FIGURES),
            Cell("–"),
        ]
        for mark, row in zip(names[len(groups) :], reported, strict=True)
    ]
    return Table("Groups: mean ± sample standard deviation over seeds", head, rows)


def _differences(found: dict[str, Any]) -> list[Block]:
    if not found["tests"]:
        return [Text("No two groups have two seeds in common, so there is nothing to test.")]
    head = ["one − other", "seeds"]
    for key in FIGURES:
        head += [TITLES[key], "p", "p (Holm)"]
    rows = []
    for test in found["tests"]:
        cells = [Cell(f"{test['one']} − {test['other']}"), count(len(test["seeds"]))]
        for key in FIGURES:
            figure = test[key]
            shown = f"{figure['difference']:+.4f} ± {figure['deviation']:.4f}"
            cells += [Cell(shown, figure["difference"]), _p(figure["p"]), _p(figure["p_holm"])]
        rows.append(cells)
    text = (
        "Two-sided paired t-tests over the seeds that both groups have; Holm's correction is for the "
        "number of pairs. With few seeds such a test finds large differences only."
    )
    return [Text(text), Table("Paired differences", head, rows)]


def _p(value: float | None) -> Cell:
    return Cell("–", 2.0) if value is None else Cell(f"{value:.4f}", value)


def _settings(groups: list[dict[str, Any]]) -> Table | Text:
    keys = list(groups[0]["settings"])
    if not keys:
        return Text("All runs have the same settings.")
    rows = [
        [Cell(group["name"]), *(Cell(_shown(group["settings"][key])) for key in keys)]
        for group in groups
    ]
    return Table("One line a group; of a path, that of its first run", ["group", *keys], rows)


def _shown(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:12]}…"


def terminal_table(found: dict[str, Any]) -> str:
    """Return the groups, the tests and the notes as lines."""
    groups = found["groups"]
    reported = {f"{row['name']} (reported)": row for row in _reference_rows(found)}
    length = max(map(len, ["group", *reported, *(group["name"] for group in groups)]))
    head = f"  {'group':<{length}} {'runs':>4} {'parameters':>10} {'MACs':>11} "
    lines = [head + f"{'macro acc. ' + found['split']:>17} {'log loss':>17}"]
    lines.append("-" * len(lines[0]))
    for group in groups:
        star = "*" if any(group["pareto"].values()) else " "
        figures = " ".join(f"{plus_minus(group[key]):>17}" for key in FIGURES)
        lines.append(
            f"{star} {group['name']:<{length}} {len(group['runs']):>4} {group['parameters']:>10,} "
            f"{group['macs']:>11,} {figures}"
        )
    for name, row in reported.items():
        figures = " ".join(f"{row[key]:>17.5f}" for key in FIGURES)
        lines.append(
            f"  {name:<{length}} {'–':>4} {row['parameters']:>10,} {row['macs']:>11,} {figures}"
        )
    lines.append("* on the Pareto front of parameters or MACs")
    for test in found["tests"]:
        figure = test["macro_accuracy"]
        p = (
            "no spread"
            if figure["p"] is None
            else f"p {figure['p']:.4f}, Holm {figure['p_holm']:.4f}"
        )
        lines.append(
            f"{test['one']} − {test['other']}: macro accuracy {figure['difference']:+.4f} ± "
            f"{figure['deviation']:.4f} ({p}, {len(test['seeds'])} seeds)"
        )
    return "\n".join([*lines, *found["notes"]])
