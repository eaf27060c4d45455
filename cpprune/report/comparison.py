"""Runs side by side: those that differ only in the seed form a group, with mean and deviation."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from statistics import fmean

from msgspec import UNSET, UnsetType

from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.evaluation.statistics import Difference, Spread, holm, paired_test, spread
from cpprune.report.evaluation import evaluate_run
from cpprune.report.recipe import recipe, weights_of
from cpprune.report.run_folder import Run, read_run
from cpprune.runs.records import Validation
from shards.errors import UserError
from shards.files.documents import parse_json, typed

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
        parameters: of its model, as are the MACs and the metrics.
    """

    label: str
    run: Run
    recipe: dict[str, object]
    parameters: int
    macs: int
    macro_accuracy: float
    log_loss: float

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.run.known.get("seed", 0)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        name: common part of their labels.
        runs: their folders, by seed.
        parameters: mean over them, as are the MACs.
        pareto: cost → whether the group is on the Pareto front of it and macro accuracy.
        settings: those in which groups differ.
    """

    name: str
    runs: list[str]
    seeds: list[int]
    parameters: int
    macs: int
    macro_accuracy: Spread
    log_loss: Spread
    pareto: dict[str, bool]
    settings: dict[str, object]


@dataclass(frozen=True)
class GroupTest:
    """The difference between two groups, by their names, over the seeds that both have."""

    one: str
    other: str
    seeds: list[int]
    macro_accuracy: Difference
    log_loss: Difference


@dataclass(frozen=True)
class ReportedModel:
    """Results that others report."""

    name: str
    parameters: int
    macs: int
    macro_accuracy: float
    log_loss: float


@dataclass(frozen=True)
class Reference:
    """The results that the seed project reports."""

    title: str
    source: str
    note: str
    rows: list[ReportedModel]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        split: that they are compared on.
        groups: by falling macro accuracy.
        tests: between groups that share two seeds or more.
        notes: sentences on what is left out or to be kept in mind.
        reference: results of others, if they were asked for.
    """

    split: str
    groups: list[Group]
    tests: list[GroupTest]
    notes: list[str]
    reference: Reference | UnsetType = UNSET

    @property
    def reported(self) -> list[ReportedModel]:
        """The models of the reference."""
        return self.reference.rows if self.reference else []


def cost_of(model: Group | ReportedModel, cost: str) -> int:
    """Return one of `COSTS`."""
    return model.macs if cost == "macs" else model.parameters


def compare_runs(
    folders: Sequence[Path], *, split: str = "val", data: str | None = None
) -> Comparison:
    """Compare runs.

    Args:
        folders: of the runs.
        split: to compare on; the metrics of val are read from the run folders.
        data: dataset to evaluate on; None: for other splits than val, that of each run.

    Raises:
        UserError: a folder is not a run, or no run is finished.
    """
    notes: list[str] = []
    entries = _entries(folders, split, data, notes)
    grouped = _grouped(entries, notes)
    names = [group_name([entry.label for entry in members]) for members in grouped]
    groups = [
        _group(members[0].label if names.count(name) > 1 else name, members, settings)
        for name, members, settings in zip(names, grouped, _differing(grouped), strict=True)
    ]
    fronts = [_front([(cost_of(g, cost), g.macro_accuracy.mean) for g in groups]) for cost in COSTS]
    groups = [
        replace(group, pareto=dict(zip(COSTS, on, strict=True)))
        for group, *on in zip(groups, *fronts, strict=True)
    ]
    groups.sort(key=lambda group: -group.macro_accuracy.mean)
    if len({members[0].recipe["dataset"] for members in grouped}) > 1:
        notes.append(
            "The runs were trained on different datasets, which may matter more than their settings."
        )
    if all(len(group.seeds) == 1 for group in groups):
        notes.append("Each group has a single seed: differences may be noise.")
    return Comparison(split, groups, _tests(groups), notes)


def with_reference(found: Comparison) -> Comparison:
    """Return a comparison with the results that the seed project reports."""
    text = files("cpprune.report").joinpath("reference.json").read_text(encoding="utf-8")
    reference = parse_json(text, Reference)
    return replace(found, reference=reference, notes=[*found.notes, reference.note])


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
        if not run.finished or run.model is None or run.origin is None or not run.settings:
            notes.append(
                f"{label} is left out: it is not a finished run with settings and a model."
            )
            continue
        metrics = run.origin.metrics.val
        if split != "val" or data is not None:
            evaluation = evaluate_run(run, data, split, 0)
            if isinstance(evaluation, str):
                notes.append(f"{label} is left out. {evaluation}")
                continue
            metrics = typed(evaluation.metrics, Validation)
        accuracy, loss, network = metrics.macro_accuracy, metrics.log_loss, run.model.network
        if accuracy is None or loss is None or not math.isfinite(accuracy + loss):
            notes.append(f"{label} is left out: its metrics are not finite.")
            continue
        entry = Entry(
            label=label,
            run=run,
            recipe=recipe(run, models, notes),
            parameters=count_parameters(network),
            macs=count_macs(network, run.model.input_shape),
            macro_accuracy=accuracy,
            log_loss=loss,
        )
        entries.append(entry)
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


def _group(name: str, members: list[Entry], settings: dict[str, object]) -> Group:
    return Group(
        name=name,
        runs=[str(entry.run.folder) for entry in members],
        seeds=[entry.seed for entry in members],
        parameters=round(fmean(entry.parameters for entry in members)),
        macs=round(fmean(entry.macs for entry in members)),
        macro_accuracy=spread([entry.macro_accuracy for entry in members]),
        log_loss=spread([entry.log_loss for entry in members]),
        pareto={},
        settings=settings,
    )


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


def _front(points: list[tuple[int, float]]) -> list[bool]:
    """Return for each point (cost, accuracy) whether it is on the Pareto front."""
    return [not any(o[0] <= p[0] and o[1] >= p[1] and o != p for o in points) for p in points]


def _differing(grouped: list[list[Entry]]) -> list[dict[str, object]]:
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


def _tests(groups: list[Group]) -> list[GroupTest]:
    pairs = [
        (one, other, seeds)
        for one, other in combinations(groups, 2)
        if len(seeds := sorted(set(one.seeds) & set(other.seeds))) > 1
    ]

    def differences(pick: Callable[[Group], Spread]) -> list[Difference]:
        found = [
            paired_test(*([pick(g).values[g.seeds.index(s)] for s in seeds] for g in both))
            for *both, seeds in pairs
        ]
        corrected = holm([test.p for test in found])
        return [replace(test, p_holm=p) for test, p in zip(found, corrected, strict=True)]

    accuracy, loss = differences(lambda g: g.macro_accuracy), differences(lambda g: g.log_loss)
    return [
        GroupTest(one.name, other.name, seeds, *both)
        for (one, other, seeds), *both in zip(pairs, accuracy, loss, strict=True)
    ]
