"""A model as a folder: `model.json` says what it is, `model.safetensors` holds its weights.

Nothing is pickled. The JSON holds the network family and its config, the width of every layer, the
classes, the front end that made its features, where the model comes from and how well it does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cpprune.audio.mel import LogMel, ScaleImage, build_features, spec_from_json, spec_to_json
from cpprune.finite import not_finite, to_json
from cpprune.models.registry import rebuild_model
from cpprune.models.resize import layer_widths
from shards.errors import InputError

FORMAT = 1


class Model(nn.Module):
    """A front end and a network: clips in, logits out.

    Attributes:
        features: front end, `features(wave_BT)` → x_BCFT.
        network: the trained network, `network(x_BCFT)` → logits [B, K].
        classes: names of the K classes, in the order of the logits.
        family: name of the network family, or "package.module:function".
        config: what the network was built with, before it was pruned; see
            `ModelConfig.network_config`.
        clip_shape: shape of one clip: (samples,), or (1, rows, columns) for images.
        about: provenance and metrics, as they stand in `model.json`.
    """

    def __init__(
        self,
        network: nn.Module,
        features: LogMel | ScaleImage,
        *,
        family: str,
        config: Mapping[str, Any],
        classes: Sequence[str],
        clip_shape: Sequence[int],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.features = features
        self.family = family
        self.config = dict(config)
        self.classes = tuple(classes)
        self.clip_shape = tuple(clip_shape)
        self.about = dict(about or {})

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T] waveforms in [−1, 1] (or int16), or uint8 images [B, 1, H, W] → logits [B, K]."""
        logits: Tensor = self.network(self.features(clips))
        return logits

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the network: (1, mel bins, frames), or that of an image."""
        if isinstance(self.features, LogMel):
            return self.features.output_shape(self.clip_shape[0])
        return self.clip_shape

    @property
    def sample_rate(self) -> int | None:
        """Samples a second that the front end expects; None for images."""
        return self.features.spec.sample_rate if isinstance(self.features, LogMel) else None


def save(model: Model, folder: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the model folder, whole or not at all; an older one there is replaced.

    Args:
        model: what to write.
        folder: where.
        weights: state dict to write instead of the network's own.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in (weights or model.network.state_dict()).items()
    }
    payload = safetensors.torch.save(tensors)
    spec = model.features.spec if isinstance(model.features, LogMel) else None
    description = {
        "format": FORMAT,
        "architecture": model.family,
        "config": model.config,
        "widths": layer_widths(model.network),
        "classes": list(model.classes),
        "clip_shape": list(model.clip_shape),
        "input_shape": list(model.input_shape),
        "features": spec_to_json(spec),
        "weights": {
            "file": "model.safetensors",
            "sha256": hashlib.sha256(payload).hexdigest(),
            "parameters": sum(p.numel() for p in model.network.parameters()),
        },
        **model.about,
    }
    with replaced_folder(folder) as new:
        write_bytes(new / "model.safetensors", payload)
        write_bytes(new / "model.json", f"{to_json(description, indent=2)}\n".encode())


def load(folder: str | Path, device: str | torch.device = "cpu") -> Model:
    """Load a model folder, in evaluation mode.

    Args:
        folder: written by training, pruning or `cpprune import`.
        device: where the model goes.

    Returns:
        `model(wave_BT)` → logits; also `.features`, `.network`, `.classes`.

    Raises:
        InputError: no such folder, or its files are damaged or do not fit together.
    """
    folder = Path(folder)
    description = read_description(folder)
    path = folder / "model.safetensors"
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); export the model anew"
        ) from None
    try:
        if hashlib.sha256(payload).hexdigest() != description["weights"]["sha256"]:
            raise InputError(
                f"{path}: does not match the sha256 in model.json; it is damaged or belongs to "
                "another model: copy the folder again from where it was made"
            )
        tensors = safetensors.torch.load(payload)
        features = build_features(spec_from_json(description["features"]))
        shape = description["clip_shape"]
        axes = 1 if isinstance(features, LogMel) else 3
        if len(shape) != axes or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"clip_shape {shape} is not {axes} positive number(s)")
        input_shape = features.output_shape(shape[0]) if isinstance(features, LogMel) else shape
        network = rebuild_model(
            description["architecture"],
            len(description["classes"]),
            {**description["config"]},
            tensors,
            input_shape,
        )
        if layer_widths(network) != description["widths"]:
            raise ValueError("widths are not those of the weights")
        known = {"format", "architecture", "config", "widths", "classes", "clip_shape"}
        known |= {"input_shape", "features", "weights"}
        model = Model(
            network,
            features,
            family=description["architecture"],
            config=description["config"],
            classes=description["classes"],
            clip_shape=description["clip_shape"],
            about={key: value for key, value in description.items() if key not in known},
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else repr(error)
        raise InputError(
            f"{folder / 'model.json'}: does not describe the weights beside it ({reason}); copy the "
            "folder again from where it was made"
        ) from None
    if wrong := not_finite(network):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(
            f"{path}: the weights of {wrong[0]}{more} are not finite, so the training that made it "
            "diverged: train again, with a lower optim.lr or with train.clip_norm"
        )
    return model.to(device).eval()


def read_description(folder: Path) -> dict[str, Any]:
    """Return `model.json` of a model folder; raise InputError where there is none."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such model folder; give the folder that training wrote, such as "
            "runs/NAME/model"
        )
    path = folder / "model.json"
    if not path.is_file():
        hint = (
            f"; did you mean {folder / 'model'}?" if (folder / "model/model.json").is_file() else ""
        )
        raise InputError(f"{folder}: holds no model.json, so it is not a model folder{hint}")
    try:
        description = json.loads(path.read_text())
        if not isinstance(description, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error})") from None
    if description.get("format") != FORMAT:
        raise InputError(
            f"{path}: has format {description.get('format')!r}, this version reads format {FORMAT}"
        )
    return description


class replaced_folder:  # noqa: N801 - reads as the statement it is used in
    """Context: a temporary folder that takes the place of `folder` when all went well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.new = folder.with_name(f".{folder.name}.new-{os.getpid()}")

    def __enter__(self) -> Path:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for kind in ("new", "old"):  # left by a process that was killed
            for stale in self.folder.parent.glob(f".{self.folder.name}.{kind}-*"):
                shutil.rmtree(stale, ignore_errors=True)
        self.new.mkdir()
        return self.new

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.new, ignore_errors=True)
            return
        old = self.folder.with_name(f".{self.folder.name}.old-{os.getpid()}")
        if self.folder.exists():
            self.folder.rename(old)
        self.new.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)


def write_bytes(path: Path, payload: bytes) -> None:
    """Write and flush to disk; an OSError names the file."""
    try:
        with path.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
