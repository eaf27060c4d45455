"""What a sweep found: one row a trial, as a table, a file and an object."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from cpprune.sweeps.board import Board
from cpprune.sweeps.outcome import kept_epoch, read_epochs, read_result
from shards.files.atomic import replace_file


def collect(board: Board) -> dict[str, Any]:
    """Return what there is so far: metric, goal, trials, and the best of those that are done.

    A trial has `number`, `run`, `state`, `value` (the metric, of the epoch whose model was kept),
    `epoch`, `parameters`, `macs`, `arguments` and `error`.
    """
    metric, goal = board.sweep.metric, board.sweep.goal
    trials = []
    for row in board.rows():
        run = board.path(row.number)
        result, kept = read_result(run) or {}, kept_epoch(read_epochs(run)) or {}
        trials.append(
            {
                "number": row.number,
                "run": str(run),
                "state": row.state,
                "value": kept.get(metric),
                "epoch": kept.get("epoch"),
                "parameters": result.get("parameters") or kept.get("parameters"),
                "macs": result.get("macs"),
                "arguments": row.values,
                "error": row.error,
            }
        )
    trials.sort(key=lambda trial: _rank(trial, goal))
    done = [trial for trial in trials if _is_measured(trial)]
    return {
        "folder": str(board.folder),
        "metric": metric,
        "goal": goal,
        "best": done[0] if done else None,
        "trials": trials,
    }


def _is_measured(trial: dict[str, Any]) -> bool:
    """Say whether a trial is done, and its folder is still there."""
    return trial["state"] == "done" and trial["value"] is not None


def _rank(trial: dict[str, Any], goal: str) -> tuple[bool, float, int]:
    """Return what puts the best that is done first, and those that are not done last."""
    done, sign = _is_measured(trial), -1 if goal == "maximize" else 1
    return not done, sign * trial["value"] if done else 0, trial["number"]


def table(found: dict[str, Any]) -> str:
    """Return the trials as a table, the best first."""
    if not found["trials"]:
        return "no trial was begun"
    names = list(found["trials"][0]["arguments"])
    rows = [["trial", found["metric"], "epoch", "parameters", "MACs", *names, "state"]]
    for trial in found["trials"]:
        figures = [_text(trial[key]) for key in ("value", "epoch", "parameters", "macs")]
        values = [_text(value) for value in trial["arguments"].values()]
        state = trial["state"] + (f": {trial['error']}" if trial["error"] else "")
        rows.append([f"{trial['number']:04d}", *figures, *values, state])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_cells(row, widths)).rstrip() for row in rows]
    lines.insert(1, "-" * max(len(line) for line in lines[:1]))
    return "\n".join(lines)


def _cells(row: list[str], widths: list[int]) -> list[str]:
    cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
    return [*cells[:-1], row[-1]]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_csv(found: dict[str, Any], path: Path) -> None:
    """Write one row a trial; columns of parameters are named as on the command line."""
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
