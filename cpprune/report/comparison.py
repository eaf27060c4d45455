"""Runs side by side: those that differ only in the seed are one group, with mean and deviation."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.evaluation.statistics import holm, paired_test, spread
from cpprune.report.ancestry import made_with, weights_of
from cpprune.report.measured import measure
from cpprune.report.runs import Run, read_run
from shards.errors import InputError

FIGURES = ("macro_accuracy", "log_loss")
COSTS = ("parameters", "macs")

# What tells one seed's folder from another's at the end of its name: -0, -seed1, seed_2.
SEED = re.compile(r"((^|[_.\- ]+)s(eed)?)?[_.\- ]*\d+$")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished run: what it was made with, costs and reaches.

    Attributes:
        label: its folder, as short as it is still unique.
        run: as it was read.
        made_with: all that shaped it but the seed.
        figures: parameters, macs, macro_accuracy and log_loss.
    """

    label: str
    run: Run
    made_with: dict[str, Any]
    figures: dict[str, float]

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.run.settings.get("seed", 0))


def compare_runs(
    folders: Sequence[Path], *, split: str = "val", data: str | None = None
) -> dict[str, Any]:
    """Return what there is to say of runs side by side, JSON-ready.

    Args:
        folders: of the runs.
        split: that the figures are of; those of val stand in the runs' folders.
        data: dataset to measure on; for other splits that of each run if None.

    Returns:
        `split`, `groups` (by falling accuracy: `name`, `runs`, `seeds`, `parameters`, `macs`,
        `macro_accuracy` and `log_loss` as `cpprune.evaluation.statistics.spread` has them, `pareto` and
        the `settings` in which groups differ), `tests` between groups with two seeds or more in
        common, and `notes`.

    Raises:
        InputError: a folder is no run, or there is no finished run among them.
    """
    notes: list[str] = []
    entries = _entries(folders, split, data, notes)
    grouped = _grouped(entries, notes)
    groups = [_describe(members) for members in grouped]
    names = [group["name"] for group in groups]
    for group, members in zip(groups, grouped, strict=True):
        if names.count(group["name"]) > 1:
            group["name"] = members[0].label
    for cost in COSTS:
        for group, best in zip(groups, _front(groups, cost), strict=True):
            group["pareto"][cost] = best
    differing = _differing(grouped)
    for group, settings in zip(groups, differing, strict=True):
        group["settings"] = settings
    groups.sort(key=lambda group: -group["macro_accuracy"]["mean"])
    if len({members[0].made_with["dataset"] for members in grouped}) > 1:
        notes.append(
            "The runs were trained on different datasets, which may decide more than they."
        )
    if all(len(group["seeds"]) == 1 for group in groups):
        notes.append("There is one seed of each: differences may be noise.")
    return {"split": split, "groups": groups, "tests": _tests(groups), "notes": notes}


def reference() -> dict[str, Any]:
    """Return what the seed project reports: `title`, `source` and `rows`."""
    text = files("cpprune.report").joinpath("reference.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _entries(
    folders: Sequence[Path], split: str, data: str | None, notes: list[str]
) -> list[Entry]:
    runs = [read_run(folder) for folder in dict.fromkeys(folders)]
    parents = [str(run.folder.resolve().parent) for run in runs]
    root = os.path.commonpath(parents) if parents else ""
    models = {
        sha: run.folder / "model" for run in runs if (sha := weights_of(run.folder / "model"))
    }
    entries = []
    for run in runs:
        label = Path(os.path.relpath(run.folder.resolve(), root)).as_posix()
        if run.failed:
            notes.append(f"{label} is left out: the run failed.")
            continue
        if run.result is None or run.model is None or not run.settings:
            notes.append(f"{label} is left out: it is no finished run with settings and a model.")
            continue
        figures: dict[str, Any] = run.model.metadata["metrics"]["val"]
        if split != "val" or data is not None:
            measured = measure(run, data, split, 0)
            if isinstance(measured, str):
                notes.append(f"{label} is left out. {measured}")
                continue
            figures = measured.figures
        if not all(figures[key] is not None and math.isfinite(figures[key]) for key in FIGURES):
            notes.append(f"{label} is left out: its figures are not finite.")
            continue
        network = run.model.network
        costs = (count_parameters(network), count_macs(network, run.model.input_shape))
        kept = dict(zip(COSTS, costs, strict=True)) | {key: figures[key] for key in FIGURES}
        shaped = made_with(run, models, notes)
        entries.append(Entry(label=label, run=run, made_with=shaped, figures=kept))
    if not entries:
        raise InputError(f"there is no finished run to compare: {' '.join(notes)}")
    return entries


def _grouped(entries: list[Entry], notes: list[str]) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        members = groups.setdefault(json.dumps(entry.made_with, sort_keys=True, default=str), [])
        twin = next((other for other in members if other.seed == entry.seed), None)
        if twin is None:
            members.append(entry)
        else:
            notes.append(
                f"{entry.label} is left out: it has the settings and the seed of {twin.label}."
            )
    return [sorted(members, key=lambda entry: entry.seed) for members in groups.values()]


def _describe(members: list[Entry]) -> dict[str, Any]:
    costs = {key: round(spread([e.figures[key] for e in members])["mean"]) for key in COSTS}
    return {
        "name": group_name([entry.label for entry in members]),
        "runs": [str(entry.run.folder) for entry in members],
        "seeds": [entry.seed for entry in members],
        **costs,
        **{key: spread([entry.figures[key] for entry in members]) for key in FIGURES},
        "pareto": {},
    }


def group_name(labels: Sequence[str]) -> str:
    """Return what the labels of runs share: "big" for big-0 and big-1, or seed-0/big and seed-1/big."""
    if len(labels) == 1:
        return labels[0]
    shared: list[str] = []
    for parts in zip(*(label.split("/") for label in labels), strict=False):
        stems = {SEED.sub("", part) for part in parts} if len(set(parts)) > 1 else set(parts)
        if len(stems) == 1:
            shared += stems
    return "/".join(stem for stem in shared if stem) or labels[0]


def _front(groups: list[dict[str, Any]], cost: str) -> list[bool]:
    """Return for each group whether none is as cheap and as accurate, and better in one of both."""
    points = [(group[cost], -group["macro_accuracy"]["mean"]) for group in groups]
    return [
        not any(o[0] <= p[0] and o[1] <= p[1] and o != p for o in points)  # all of them, so p too
        for p in points
    ]


def _differing(grouped: list[list[Entry]]) -> list[dict[str, Any]]:
    """Return, for each group, the settings that are not the same in all."""
    keys = sorted({key for members in grouped for key in members[0].made_with})
    differ = [
        key
        for key in keys
        if len({json.dumps(m[0].made_with.get(key), default=str) for m in grouped}) > 1
    ]
    return [
        {key: members[0].run.settings.get(key, members[0].made_with.get(key)) for key in differ}
        for members in grouped
    ]


def _tests(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = []
    for one, other in combinations(groups, 2):
        seeds = sorted(set(one["seeds"]) & set(other["seeds"]))
        if len(seeds) < 2:
            continue
        test: dict[str, Any] = {"one": one["name"], "other": other["name"], "seeds": seeds}
        for key in FIGURES:
            pair = [[g[key]["values"][g["seeds"].index(s)] for s in seeds] for g in (one, other)]
            test[key] = paired_test(*pair)
        tests.append(test)
    for key in FIGURES:
        for test, p in zip(tests, holm([test[key]["p"] for test in tests]), strict=True):
            test[key]["p_holm"] = p
    return tests
