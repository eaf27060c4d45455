"""Saving everything that a run's future depends on, and going on from it.

A checkpoint is a folder: `state.json`, `network.safetensors`, `optimizer.safetensors`. It is written
beside its place and renamed, so there is never half of one; the one before stays until then. Random
draws are functions of (seed, epoch, batch), so there is no generator to save.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cpprune.artifact import replaced_folder, write_bytes
from cpprune.models.resize import fit
from shards.errors import InputError

FORMAT = 1


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: the epoch that comes next, or is under way.
        batch: the global batch of that epoch that comes next.
        step: optimizer steps so far.
        events_done: pruning events that have happened.
        widths: output channels by layer, as they are now.
        original_widths: as they were at the start of the run.
        val_losses: validation log loss of each epoch so far.
        best: the best value of the monitored figure since the last pruning event, or None.
        loss_sums: sum of the losses of this epoch's clips so far, of each rank.
        clips_seen: how many those are.
        metrics_bytes: length of metrics.jsonl, so that lines of lost work are cut off.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    events_done: int = 0
    widths: dict[str, int] = field(default_factory=dict)
    original_widths: dict[str, int] = field(default_factory=dict)
    val_losses: list[float] = field(default_factory=list)
    best: float | None = None
    loss_sums: list[float] = field(default_factory=list)
    clips_seen: int = 0
    metrics_bytes: int = 0


def save(
    folder: Path,
    keep: int,
    progress: Progress,
    identity: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: dict[str, Any] | None,
) -> None:
    """Write checkpoint `step-N` into `folder` and delete all but the last `keep`.

    Args:
        folder: the run's checkpoints folder.
        keep: how many to keep.
        progress: see `Progress`.
        identity: configuration and dataset fingerprint, which a resumed run must share.
        network: unwrapped.
        optimizer: over the network's parameters, in their order.
        scaler: state of the gradient scaler, or None.
    """
    moments, scalars = split_optimizer_state(network, optimizer)
    state = {
        "format": FORMAT,
        "progress": asdict(progress),
        "identity": identity,
        "optimizer": scalars,
        "scaler": scaler,
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    files = {
        "network.safetensors": safetensors.torch.save(tensors),
        "optimizer.safetensors": safetensors.torch.save(moments),
        "state.json": (json.dumps(state, indent=2) + "\n").encode(),
    }
    manifest = {name: hashlib.sha256(payload).hexdigest() for name, payload in files.items()}
    files["manifest.json"] = (json.dumps(manifest, indent=2) + "\n").encode()
    with replaced_folder(folder / f"step-{progress.step:08d}") as new:
        for name, payload in files.items():
            write_bytes(new / name, payload)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(r"step-\d+", p.name))


@dataclass(frozen=True)
class State:
    """What a checkpoint's state.json holds.

    Attributes:
        progress: how far the run had come.
        identity: what a run that goes on has to share.
        optimizer: the optimizer's plain values.
        scaler: state of the gradient scaler, or None.
    """

    progress: Progress
    identity: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None


def read_state(checkpoint: Path) -> State:
    """Return a checkpoint's state.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    payload = _read_whole(checkpoint, "state.json")
    try:
        state = json.loads(payload)
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}, this version reads {FORMAT}")
        progress = Progress(**state["progress"])
        return State(progress, state["identity"], state["optimizer"], state["scaler"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unusable(checkpoint / "state.json", str(error)) from None


def restore_network(checkpoint: Path, network: nn.Module) -> bool:
    """Load a checkpoint's network into one of its architecture, of whatever widths, in place.

    Returns:
        Whether the widths changed: then the network has new parameters, which need an optimizer.

    Raises:
        InputError: the file is damaged, or holds another architecture.
    """
    try:
        weights = safetensors.torch.load(_read_whole(checkpoint, "network.safetensors"))
        fitted = fit(network, weights)
        network.load_state_dict(weights)
    except InputError:
        raise
    except (RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise _unusable(checkpoint, str(error).strip().splitlines()[-1].strip()) from None
    return fitted


def restore_optimizer(
    checkpoint: Path, state: State, network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Load a checkpoint's optimizer state into the optimizer of its restored network.

    Raises:
        InputError: the file is damaged, or does not fit the network.
    """
    try:
        moments = safetensors.torch.load(_read_whole(checkpoint, "optimizer.safetensors"))
        join_optimizer_state(network, optimizer, moments, state.optimizer)
    except (RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise _unusable(checkpoint, str(error).strip().splitlines()[-1].strip()) from None


def _read_whole(checkpoint: Path, name: str) -> bytes:
    """Return the bytes of a file of a checkpoint; raise InputError unless they are as written."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_bytes())
        payload = (checkpoint / name).read_bytes()
        expected = manifest[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(checkpoint / name, str(error)) from None
    if hashlib.sha256(payload).hexdigest() != expected:
        raise _unusable(checkpoint / name, "its sha256 differs from manifest.json")
    return payload


def _unusable(path: Path, reason: str) -> InputError:
    folder = path if path.is_dir() else path.parent
    return InputError(
        f"{path}: is damaged or does not fit ({reason}); delete {folder} to go on from the one before"
    )


def split_optimizer_state(
    network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's tensors as {"parameter/moment": …} and its plain values."""
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    state = optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for number, values in state.items():
        for key, value in values.items():
            full = f"{names[number]}/{key}"
            if isinstance(value, Tensor):
                tensors[full] = value.detach().cpu().contiguous()
            else:
                scalars[full] = value
    return tensors, scalars


def join_optimizer_state(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
) -> None:
    """Give the optimizer the state that `split_optimizer_state` returned."""
    numbers = {
        name: number
        for number, name in enumerate(n for n, p in network.named_parameters() if p.requires_grad)
    }
    state: dict[int, dict[str, Any]] = {}
    for full, value in {**tensors, **scalars}.items():
        name, key = full.rsplit("/", 1)
        state.setdefault(numbers[name], {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
