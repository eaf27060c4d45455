"""Runs side by side: those that differ only in the seed form a group, with mean and deviation."""

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
from cpprune.report.evaluation import evaluate_run
from cpprune.report.recipe import recipe, weights_of
from cpprune.report.run_folder import Run, read_run
from shards.errors import UserError

METRICS = ("macro_accuracy", "log_loss")
COSTS = ("parameters", "macs")

# The seed at the end of a folder's name: -0, -seed1, seed_2.
SEED = re.compile(r"((^|[_.\- ]+)s(eed)?)?[_.\- ]*\d+$")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished run.

    Attributes:
        label: its folder, relative to the common parent of all runs.
        run: as read from its folder.
        recipe: everything that determined it except the seed.
        values: parameters, macs, macro_accuracy and log_loss.
    """

    label: str
    run: Run
    recipe: dict[str, Any]
    values: dict[str, float]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.run.settings.get("seed", 0))


def compare_runs(
    folders: Sequence[Path], *, split: str = "val", data: str | None = None
) -> dict[str, Any]:
    """Compare runs; return the results, JSON-ready.

    Args:
        folders: of the runs.
        split: to compare on; the metrics of val are read from the run folders.
        data: dataset to evaluate on; None: for other splits than val, that of each run.

    Returns:
        `split`, `groups` (by falling accuracy: `name`, `runs`, `seeds`, `parameters`, `macs`,
        `macro_accuracy` and `log_loss` from `cpprune.evaluation.statistics.spread`, `pareto`, and the
        `settings` in which groups differ), `tests` between groups that share two seeds or more, and
        `notes`.

    Raises:
        UserError: a folder is not a run, or no run is finished.
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
    if len({members[0].recipe["dataset"] for members in grouped}) > 1:
        notes.append(
            "The runs were trained on different datasets, which may matter more than their settings."
        )
    if all(len(group["seeds"]) == 1 for group in groups):
        notes.append("Each group has a single seed: differences may be noise.")
    return {"split": split, "groups": groups, "tests": _tests(groups), "notes": notes}


def reference() -> dict[str, Any]:
    """Return the results that the seed project reports: `title`, `source`, `note` and `rows`."""
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
            notes.append(
                f"{label} is left out: it is not a finished run with settings and a model."
            )
            continue
        metrics: dict[str, Any] = run.model.metadata["metrics"]["val"]
        if split != "val" or data is not None:
            evaluation = evaluate_run(run, data, split, 0)
            if isinstance(evaluation, str):
                notes.append(f"{label} is left out. {evaluation}")
                continue
            metrics = evaluation.metrics
        if not all(metrics[key] is not None and math.isfinite(metrics[key]) for key in METRICS):
            notes.append(f"{label} is left out: its metrics are not finite.")
            continue
        network = run.model.network
        costs = (count_parameters(network), count_macs(network, run.model.input_shape))
        kept = dict(zip(COSTS, costs, strict=True)) | {key: metrics[key] for key in METRICS}
        shaped = recipe(run, models, notes)
        entries.append(Entry(label=label, run=run, recipe=shaped, values=kept))
    if not entries:
        raise UserError(f"there is no finished run to compare: {' '.join(notes)}")
    return entries


def _grouped(entries: list[Entry], notes: list[str]) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        members = groups.setdefault(json.dumps(entry.recipe, sort_keys=True, default=str), [])
        twin = next((other for other in members if other.seed == entry.seed), None)
        if twin is None:
            members.append(entry)
        else:
            notes.append(
                f"{entry.label} is left out: it has the same settings and seed as {twin.label}."
            )
    return [sorted(members, key=lambda entry: entry.seed) for members in groups.values()]


def _describe(members: list[Entry]) -> dict[str, Any]:
    costs = {key: round(spread([e.values[key] for e in members])["mean"]) for key in COSTS}
    return {
        "name": group_name([entry.label for entry in members]),
        "runs": [str(entry.run.folder) for entry in members],
        "seeds": [entry.seed for entry in members],
        **costs,
        **{key: spread([entry.values[key] for entry in members]) for key in METRICS},
        "pareto": {},
    }


def group_name(labels: Sequence[str]) -> str:
    """Return the common part of labels: "big" for big-0 and big-1, or seed-0/big and seed-1/big."""
    if len(labels) == 1:
        return labels[0]
    shared: list[str] = []
    for parts in zip(*(label.split("/") for label in labels), strict=False):
        stems = {SEED.sub("", part) for part in parts} if len(set(parts)) > 1 else set(parts)
        if len(stems) == 1:
            shared += stems
    return "/".join(stem for stem in shared if stem) or labels[0]


def _front(groups: list[dict[str, Any]], cost: str) -> list[bool]:
    """Return for each group whether it is on the Pareto front of accuracy and a cost."""
    points = [(group[cost], -group["macro_accuracy"]["mean"]) for group in groups]
    return [
        not any(o[0] <= p[0] and o[1] <= p[1] and o != p for o in points)  # `all` includes p itself
        for p in points
    ]


def _differing(grouped: list[list[Entry]]) -> list[dict[str, Any]]:
    """Return, for each group, the settings that differ between groups."""
    keys = sorted({key for members in grouped for key in members[0].recipe})
    differ = [
        key
        for key in keys
        if len({json.dumps(m[0].recipe.get(key), default=str) for m in grouped}) > 1
    ]
    return [
        {key: members[0].run.settings.get(key, members[0].recipe.get(key)) for key in differ}
        for members in grouped
    ]


def _tests(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = []
    for one, other in combinations(groups, 2):
        seeds = sorted(set(one["seeds"]) & set(other["seeds"]))
        if len(seeds) < 2:
            continue
        test: dict[str, Any] = {"one": one["name"], "other": other["name"], "seeds": seeds}
        for key in METRICS:
            pair = [[g[key]["values"][g["seeds"].index(s)] for s in seeds] for g in (one, other)]
            test[key] = paired_test(*pair)
        tests.append(test)
    for key in METRICS:
        for test, p in zip(tests, holm([test[key]["p"] for test in tests]), strict=True):
            test[key]["p_holm"] = p
    return tests
