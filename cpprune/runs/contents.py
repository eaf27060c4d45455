"""The contents of a run folder: what marks it as a run, and what a run that starts again removes.

`environment.json`, the first file of every run, marks it; failing that, a checkpoint does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cpprune.models import artifact
from cpprune.runs import checkpoint, tracking
from shards.files.locks import locked
from shards.files.ownership import Kind, claim, read_mark, remove

LOCK = ".lock"
MODELS = ("model", "model_last", "uncut")
# What a run that starts again overwrites, and what it removes. Other files of the user stay.
_KEPT = ("environment.json", "config.yaml")
_FILES = ("metrics.jsonl", "result.json", "report.html", tracking.STATE, tracking.LOG)
_FOLDERS = ("checkpoints", *MODELS, "plans", "ids", "tensorboard", "compiled")
REMOVED = (
    *_FILES,
    *(f"{name}.*.tmp" for name in (*_KEPT, *_FILES)),
    *(f"{model}/{file}" for model in MODELS for file in artifact.FILES),
    *(
        f".{model}.{age}-*/{file}"
        for model in MODELS
        for age in ("new", "old")
        for file in artifact.FILES
    ),
    *(
        f"checkpoints/{name}/{file}"
        for name in ("step-*", "damaged-step-*", ".step-*.new-*", ".step-*.old-*")
        for file in checkpoint.FILES
    ),
    *("plans/epoch-[0-9]*.json", "ids/rank-[0-9]*.jsonl", "tensorboard/events.out.tfevents.*"),
)


def is_run(folder: Path) -> bool:
    """Return whether a run has written this folder."""
    packages = read_mark(folder / "environment.json").get("packages")
    if isinstance(packages, dict) and "cpprune" in packages:
        return True
    states = (read_mark(path / "state.json") for path in _checkpoints(folder))
    return any({"format", "progress", "identity"} <= state.keys() for state in states)


def _checkpoints(folder: Path) -> list[Path]:
    with suppress(OSError):
        return checkpoint.list_checkpoints(folder / "checkpoints")
    return []


RUN = Kind(
    name="a run",
    parts=(*_KEPT, *_FILES, *(f"{name}/" for name in _FOLDERS)),
    made=is_run,
    # A run may be asked to stop before it has started.
    early=frozenset({LOCK, "STOP"}),
)


# In a run's folder these names are the run's, whatever else a user has put there.
_MODEL_OF_A_RUN = replace(artifact.MODEL, made=lambda folder: True)


def claim_run(folder: Path) -> None:
    """Check that a run may write into a folder, without writing.

    Raises:
        UserError: it holds something else than a run.
    """
    claim(folder, RUN, "--run")
    for name in MODELS:
        claim(folder / name, _MODEL_OF_A_RUN, "--run")


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Lock a run folder against other processes; called on rank 0, for all ranks.

    The lock file stays, so that machines which see changes late agree on it, too.

    Raises:
        UserError: another process trains there.
    """
    there = folder.is_dir()
    busy = f"{folder}: another process trains in this run folder"
    try:
        with locked(folder / LOCK, busy, keep=True):
            yield
    finally:
        # A run that could not start leaves nothing.
        if not there and folder.is_dir() and {path.name for path in folder.iterdir()} == {LOCK}:
            with suppress(OSError):
                (folder / LOCK).unlink()
                folder.rmdir()


def clear_run(folder: Path) -> None:
    """Remove the files of an earlier run from a claimed folder, and nothing else."""
    remove(folder, REMOVED)
