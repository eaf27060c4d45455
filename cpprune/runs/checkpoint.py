"""Checkpoints: everything that a resumed run depends on.

A checkpoint is a folder: `state.json` and `network`, `optimizer` and `average.safetensors`. It is
written under another name and renamed, so that it is never partly written; the previous one stays until
then. Random numbers are functions of (seed, epoch, batch), so there is no generator state to save.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from torch import Tensor, nn

from cpprune.models.artifact import MOST_WEIGHTS, parse_tensors, tensor_bytes
from cpprune.models.changes import (
    change_attributes,
    changed_attributes,
    remove_blocks,
    removed_blocks,
)
from cpprune.models.resize import fit, layer_widths
from cpprune.runs.identity import RunIdentity
from shards.errors import UserError
from shards.files.atomic import write_bytes
from shards.files.documents import parse_json, read_bytes, read_json, to_json, typed
from shards.files.ownership import remove, replaced_folder

FORMAT = 2


Count = Annotated[int, Meta(ge=0)]


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: the current epoch, or the next one between epochs.
        batch: the next global batch of that epoch.
        step: optimizer steps so far.
        events_done: pruning events that have happened.
        widths: current output channels by layer.
        original_widths: output channels by layer at the start of the run.
        removed_blocks: names of the blocks that were removed, in this run or before it.
        attributes: integers of modules that were changed, likewise.
        val_losses: validation log loss of each epoch so far; None where it was not finite.
        best: the best value of the monitored metric since the last pruning event, or None.
        best_step: the step at which it was measured.
        loss_sums: sum of the losses of this epoch's clips so far, of each rank.
        clips_seen: number of those clips.
        seconds: training time, without work that was lost and repeated.
        skipped: number of steps whose gradient was not finite.
        metrics_bytes: size of metrics.jsonl; what is beyond it when the run resumes is removed.
    """

    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    events_done: Count = 0
    widths: dict[str, Count] = field(default_factory=dict)
    original_widths: dict[str, Count] = field(default_factory=dict)
    removed_blocks: list[str] = field(default_factory=list)
    attributes: dict[str, Count] = field(default_factory=dict)
    val_losses: list[float | None] = field(default_factory=list)
    best: float | None = None
    best_step: Annotated[int, Meta(ge=-1)] = -1
    loss_sums: list[float] = field(default_factory=list)
    clips_seen: Count = 0
    seconds: Annotated[float, Meta(ge=0)] = 0.0
    skipped: Count = 0
    metrics_bytes: Count = 0

    @classmethod
    def of(cls, network: nn.Module) -> Progress:
        """Return the progress of a run that begins with a network."""
        begun = cls(original_widths=layer_widths(network))
        begun.note(network)
        return begun

    def note(self, network: nn.Module) -> None:
        """Note what a network is like after it was cut."""
        self.widths = layer_widths(network)
        self.removed_blocks = removed_blocks(network)
        self.attributes = changed_attributes(network)


@dataclass(frozen=True)
class Tensors:
    """The contents of a checkpoint's safetensors files, tensors by name.

    Attributes:
        network: weights and buffers.
        optimizer: its state, from `cpprune.training.optimizer_state`.
        average: the moving average of the network; empty if there is none.
    """

    network: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]


TENSOR_FILES = ("network", "optimizer", "average")
FILES = (*(f"{name}.safetensors" for name in TENSOR_FILES), "state.json", "manifest.json")


def save(
    folder: Path,
    keep: int,
    progress: Progress,
    identity: RunIdentity,
    tensors: Tensors,
    scaler: dict[str, object] | None,
) -> None:
    """Write checkpoint `step-N` into `folder` and delete all but the last `keep` and the best.

    Args:
        folder: the run's checkpoints folder.
        keep: number of checkpoints to keep.
        progress: see `Progress`.
        identity: settings and fingerprints that a resumed run must share.
        tensors: see `Tensors`.
        scaler: state of the gradient scaler, or None.
    """
    state = {
        "format": FORMAT,
        "progress": asdict(progress),
        "identity": asdict(identity),
        "scaler": scaler,
    }
    files = {f"{name}.safetensors": tensor_bytes(getattr(tensors, name)) for name in TENSOR_FILES}
    files["state.json"] = f"{to_json(state, indent=2)}\n".encode()
    manifest = {name: hashlib.sha256(payload).hexdigest() for name, payload in files.items()}
    files["manifest.json"] = (json.dumps(manifest, indent=2) + "\n").encode()
    with replaced_folder(folder / _name(progress.step), FILES) as new:
        for name, payload in files.items():
            write_bytes(new / name, payload)
    for old in list_checkpoints(folder)[:-keep]:
        if old.name != _name(progress.best_step):
            remove(folder, [f"{old.name}/{file}" for file in FILES])


def _name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        # A folder that holds only files of the user is none.
        if re.fullmatch(r"step-\d+", path.name) and any((path / file).exists() for file in FILES)
    )


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        path: its folder.
        progress: of the run when it was written.
        identity: what a resumed run must share.
        scaler: state of the gradient scaler, or None.
        tensors: see `Tensors`.
    """

    path: Path
    progress: Progress
    identity: RunIdentity
    scaler: dict[str, object] | None
    tensors: Tensors

    def remove_blocks(self, network: nn.Module) -> None:
        """Remove from a network of the same architecture the blocks that the checkpoint's lacks."""
        gone = removed_blocks(network)  # in the model that the run started from
        try:
            remove_blocks(network, [n for n in self.progress.removed_blocks if n not in gone])
        except ValueError as error:
            raise _unusable(self.path / "state.json", f"progress.{error}") from None

    def restore(self, network: nn.Module) -> None:
        """Give a network of the same architecture the checkpoint's blocks, widths and weights."""
        self.remove_blocks(network)
        try:
            change_attributes(network, self.progress.attributes)
        except ValueError as error:
            raise _unusable(self.path / "state.json", f"progress.{error}") from None
        fit(network, self.tensors.network)
        network.load_state_dict(self.tensors.network)


def read(checkpoint: Path) -> Saved:
    """Read and verify a checkpoint.

    Raises:
        UserError: a file of it is damaged or missing.
    """
    files = {name: _read_whole(checkpoint, f"{name}.safetensors") for name in TENSOR_FILES}
    text = _read_whole(checkpoint, "state.json")
    try:
        # An older version wrote NaN, which is never the best, as null is not.
        content = parse_json(text, dict[str, object], nan=True)
        if content.get("format") != FORMAT:
            raise ValueError(f"format {content.get('format')}, this version reads {FORMAT}")
        state = typed(content, _State)
        unknown = sorted(state.progress.keys() - Progress.__dataclass_fields__.keys())
        if unknown:
            raise ValueError(f"progress.{unknown[0]} is not known")
        for key in ("loss_sums", "val_losses"):
            sums = state.progress.get(key, [])
            if isinstance(sums, list):
                state.progress[key] = [math.nan if x is None else x for x in sums]
        progress = typed(state.progress, Progress)
    except (ValueError, TypeError) as error:
        raise _unusable(checkpoint / "state.json", str(error)) from None
    tensors = {
        name: parse_tensors(payload, checkpoint / f"{name}.safetensors")
        for name, payload in files.items()
    }
    return Saved(checkpoint, progress, state.identity, state.scaler, Tensors(**tensors))


@dataclass(frozen=True)
class _State:
    """The contents of `state.json`."""

    progress: dict[str, object]
    identity: RunIdentity
    scaler: dict[str, object] | None


def set_aside(folder: Path, last_whole: Path) -> None:
    """Rename the checkpoints that are newer than the last whole one: they are damaged."""
    for path in list_checkpoints(folder):
        if path.name > last_whole.name:
            aside = path.with_name(f"damaged-{path.name}")
            remove(folder, [f"{aside.name}/{file}" for file in FILES])
            path.rename(aside)


def _read_whole(checkpoint: Path, name: str) -> bytes:
    """Return the bytes of a file of a checkpoint; raise UserError unless they are as written."""
    try:
        manifest = read_json(checkpoint / "manifest.json", dict[str, str])
        payload = read_bytes(checkpoint / name, MOST_WEIGHTS)
        expected = manifest[name]
    except (UserError, KeyError) as error:
        raise _unusable(checkpoint / name, str(error)) from None
    if hashlib.sha256(payload).hexdigest() != expected:
        raise _unusable(checkpoint / name, "its sha256 differs from manifest.json")
    return payload


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: is damaged or does not fit ({reason})")
