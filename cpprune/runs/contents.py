"""Whose a run folder is: who may write into it, and what of it a run that begins anew removes.

`environment.json`, the first file of every run, marks it; without that, a checkpoint does.
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
MODELS = ("model", "model_last")
# What a run that begins anew writes over, and what it removes. What else a user keeps there stays.
_KEPT = ("environment.json", "config.yaml")
_FILES = ("metrics.jsonl", "result.json", "report.html", tracking.STATE, tracking.LOG)
_FOLDERS = ("checkpoints", *MODELS, "plans", "ids", "tensorboard")
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
    """Return whether files of this folder show that a run wrote them."""
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
    # Whoever starts a run may ask it to stop before it has begun.
    early=frozenset({LOCK, "STOP"}),
)


# In a run's folder these names are the run's, whatever else a user has put there.
_MODEL_OF_A_RUN = replace(artifact.MODEL, made=lambda folder: True)


def claim_run(folder: Path) -> None:
    """Check that a run may write into a folder; touch nothing.

    Raises:
        InputError: it holds anything but a run, or something of another kind has the name of a part.
    """
    claim(folder, RUN, "--run")
    for name in MODELS:
        claim(folder / name, _MODEL_OF_A_RUN, "--run")


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder; for rank 0, which holds it for all ranks.

    The lock file stays, so that also processes on machines that see changes late agree on it.

    Raises:
        InputError: another process trains there, and goes on doing so for some seconds.
    """
    there = folder.is_dir()
    busy = f"{folder}: another process trains in this run folder"
    try:
        with locked(folder / LOCK, busy, keep=True):
            yield
    finally:
        # A run that could not begin leaves nothing.
        if not there and folder.is_dir() and {path.name for path in folder.iterdir()} == {LOCK}:
            with suppress(OSError):
                (folder / LOCK).unlink()
                folder.rmdir()


def clear_run(folder: Path) -> None:
    """Remove what an older run has written into a claimed folder, and nothing else."""
    remove(folder, REMOVED)
