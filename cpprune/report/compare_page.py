"""The HTML page of `cpprune compare`."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from cpprune.evaluation.statistics import Spread
from cpprune.report import charts
from cpprune.report.charts import Point
from cpprune.report.comparison import COSTS, METRICS, Comparison, Group, cost_of
from cpprune.report.page import Block, Cell, Document, Figure, Section, Table, Text, count

TITLES = {
    "parameters": "Parameters",
    "macs": "MACs of one clip",
    "macro_accuracy": "macro accuracy",
    "log_loss": "log loss",
}


def comparison_document(found: Comparison) -> Document:
    """Return the page of a comparison."""
    groups = found.groups
    runs = sum(len(group.runs) for group in groups)
    sections = [
        Section("Accuracy against cost", [*_plots(found), _groups_table(found)]),
        Section("Differences", _differences(found)),
        Section("Settings that differ", [_settings(groups)]),
    ]
    if found.reference:
        sections.append(Section(found.reference.title, [Text(found.reference.source)]))
    return Document(
        "Comparison of runs",
        f"{runs} run(s) in {len(groups)} group(s), evaluated on the split {found.split}. Runs of a "
        "group differ only in the seed.",
        [],
        found.notes,
        sections,
    )


def marks(number: int) -> list[str]:
    """Return `number` short names: A to Z, then A1 and so on."""
    rounds = -(-number // len(ascii_uppercase))
    return [f"{c}{n or ''}" for n in range(rounds) for c in ascii_uppercase][:number]


def mean_and_deviation(figure: Spread, digits: int = 4) -> str:
    """Return mean ± standard deviation; of a single value, the value."""
    text = f"{figure.mean:.{digits}f}"
    return text if figure.deviation is None else f"{text} ± {figure.deviation:.{digits}f}"


def _plots(found: Comparison) -> list[Figure]:
    groups, reported = found.groups, found.reported
    names = marks(len(groups) + len(reported))
    figures = []
    for cost in COSTS:
        points = [
            Point(
                names[n],
                group.name,
                cost_of(group, cost),
                group.macro_accuracy.mean,
                group.macro_accuracy.deviation,
                group.pareto[cost],
            )
            for n, group in enumerate(groups)
        ]
        points += [
            Point(mark, row.name, cost_of(row, cost), row.macro_accuracy, None, False, True)
            for mark, row in zip(names[len(groups) :], reported, strict=True)
        ]
        label = f"Macro accuracy over {TITLES[cost]}; the Pareto front is marked"
        drawing = charts.pareto(label, TITLES[cost], "macro accuracy", points)
        caption = "Filled: on the Pareto front. Vertical lines: ± standard deviation over seeds."
        caption += " Diamonds: results reported by others." * bool(reported)
        figures.append(Figure(drawing, caption))
    return figures


def _groups_table(found: Comparison) -> Table:
    groups, reported = found.groups, found.reported
    names = marks(len(groups) + len(reported))
    head = [
        "",
        "group",
        "runs",
        "parameters",
        "MACs",
        "macro accuracy",
        "log loss",
        "Pareto front of",
    ]
    rows: list[Sequence[Cell]] = [
        [
            Cell(mark),
            Cell(group.name),
            count(len(group.runs)),
            *map(count, (group.parameters, group.macs)),
            *(Cell(mean_and_deviation(x), x.mean) for x in (group.macro_accuracy, group.log_loss)),
            Cell(", ".join(cost for cost in COSTS if group.pareto[cost]) or "–"),
        ]
        for mark, group in zip(names, groups, strict=False)
    ]
    rows += [
        [
            Cell(mark),
            Cell(f"{row.name} (reported)"),
            Cell("–", 0),
            *map(count, (row.parameters, row.macs)),
            *(Cell(f"{value:.5f}", value) for value in (row.macro_accuracy, row.log_loss)),
            Cell("–"),
        ]
        for mark, row in zip(names[len(groups) :], reported, strict=True)
    ]
    return Table("Groups: mean ± sample standard deviation over seeds", head, rows)


def _differences(found: Comparison) -> list[Block]:
    if not found.tests:
        return [Text("No two groups share two seeds, so there is nothing to test.")]
    head = ["one − other", "seeds"]
    for key in METRICS:
        head += [TITLES[key], "p", "p (Holm)"]
    rows = []
    for test in found.tests:
        cells = [Cell(f"{test.one} − {test.other}"), count(len(test.seeds))]
        for figure in (test.macro_accuracy, test.log_loss):
            shown = f"{figure.difference:+.4f} ± {figure.deviation:.4f}"
            cells += [Cell(shown, figure.difference), _p(figure.p), _p(figure.p_holm)]
        rows.append(cells)
    text = (
        "Two-sided paired t-tests over the seeds that both groups share, with Holm's correction for the "
        "number of pairs. With few seeds, only large differences can be significant."
    )
    return [Text(text), Table("Paired differences", head, rows)]


def _p(value: float | None) -> Cell:
    return Cell("–", 2.0) if value is None else Cell(f"{value:.4f}", value)


def _settings(groups: list[Group]) -> Table | Text:
    keys = list(groups[0].settings)
    if not keys:
        return Text("All groups have the same settings.")
    rows = [
        [Cell(group.name), *(Cell(_shown(group.settings[key])) for key in keys)] for group in groups
    ]
    return Table("Settings by group; a path is that of its first run", ["group", *keys], rows)


def _shown(value: object) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:12]}…"
