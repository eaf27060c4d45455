"""The results of a sweep: one record per trial, also as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from cpprune.sweeps.study import SharedStudy
from cpprune.sweeps.trial import best_epoch, read_epochs, read_result
from shards.files.atomic import replace_file


def collect(study: SharedStudy) -> dict[str, Any]:
    """Return the results so far, JSON-ready: `folder`, `metric`, `goal`, `best` and `trials`.

    A trial has `number`, `run`, `state`, `value` (the metric of its best epoch), `epoch`,
    `parameters`, `macs`, `arguments` and `error`. The best trial comes first.
    """
    metric, goal = study.sweep.metric, study.sweep.goal
    trials = []
    for row in study.status():
        run = study.path(row.number)
        result, best = read_result(run) or {}, best_epoch(read_epochs(run)) or {}
        trials.append(
            {
                "number": row.number,
                "run": str(run),
                "state": row.state,
                "value": best.get(metric),
                "epoch": best.get("epoch"),
                "parameters": result.get("parameters") or best.get("parameters"),
                "macs": result.get("macs"),
                "arguments": row.values,
                "error": row.error,
            }
        )
    trials.sort(key=lambda trial: _rank(trial, goal))
    done = [trial for trial in trials if _is_measured(trial)]
    return {
        "folder": str(study.folder),
        "metric": metric,
        "goal": goal,
        "best": done[0] if done else None,
        "trials": trials,
    }


def _is_measured(trial: dict[str, Any]) -> bool:
    """Return whether a trial is done and its run folder still exists."""
    return trial["state"] == "done" and trial["value"] is not None


def _rank(trial: dict[str, Any], goal: str) -> tuple[bool, float, int]:
    """Return the sort key: done trials by value, best first, then the others."""
    done, sign = _is_measured(trial), -1 if goal == "maximize" else 1
    return not done, sign * trial["value"] if done else 0, trial["number"]


def write_csv(found: dict[str, Any], path: Path) -> None:
    """Write one row per trial; columns of parameters are named as on the command line."""
    keys = ("number", "state", "value", "epoch", "parameters", "macs")
    names = list(found["trials"][0]["arguments"]) if found["trials"] else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = [found["metric"] if key == "value" else key for key in keys]
    writer.writerow([*header, *(f"--{name}" for name in names), "run", "error"])
    for trial in found["trials"]:
        values = [trial[key] for key in keys]
        writer.writerow([*values, *trial["arguments"].values(), trial["run"], trial["error"]])
    replace_file(path, path.parent, text.getvalue().encode())
