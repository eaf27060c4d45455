"""Model folders: `model.json` describes the model, `model.safetensors` holds its weights.

Nothing is pickled. The JSON holds the network family and its config, the blocks that were removed, the
width of every layer, the classes, the front end, the provenance and the validation metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
import torch
from msgspec import Meta
from torch import Tensor, nn

from cpprune.audio.frontend import (
    FrontEnd,
    build_features,
    check_size,
    spec_from_json,
    spec_to_json,
)
from cpprune.models.changes import changes
from cpprune.models.example import memory_format
from cpprune.models.factory import is_factory
from cpprune.models.finite import not_finite
from cpprune.models.quantized import RANGES, Quantization, quantization_of, restore_quantized
from cpprune.models.registry import can_be_fused, rebuild_model
from cpprune.models.resize import layer_widths
from cpprune.models.trust import require_trust
from shards.errors import UserError
from shards.files.atomic import write_bytes
from shards.files.documents import read_bytes, read_json, to_json, typed
from shards.files.ownership import Kind, claim, read_mark, replaced_folder

FORMAT = 1
MOST_WEIGHTS = 16 << 30  # bytes
FILES = ("model.safetensors", "model.json")


def _is_model(folder: Path) -> bool:
    description = read_mark(folder / "model.json")
    weights = description.get("weights")
    named = {"format", "architecture", "config", "classes"} <= description.keys()
    return named and isinstance(weights, dict) and "sha256" in weights


MODEL = Kind(name="a model", parts=FILES, made=_is_model, replaced=True)


class Model(nn.Module):
    """A front end and a network: clips in, logits out.

    Attributes:
        features: front end, `features(wave_BT)` → x_BCFT.
        network: the trained network, `network(x_BCFT)` → logits [B, K].
        classes: names of the K classes, in the order of the logits.
        family: name of the network family, or "package.module:function".
        config: what the network was built with before pruning; see `ModelConfig.network_config`.
        clip_shape: shape of one clip: (samples,), or (1, rows, columns) for images.
        metadata: provenance and metrics, as in `model.json`.
        fresh: names of the parameters that did not come with the others, but were initialised.
        notes: what a run that starts from it should say, a line each.
    """

    # More parameters than is usual: what `model.json` holds, each under its own name.
    def __init__(
        self,
        network: nn.Module,
        features: FrontEnd,
        *,
        family: str,
        config: Mapping[str, object],
        classes: Sequence[str],
        clip_shape: Sequence[int],
        metadata: Mapping[str, object] | None = None,
        fresh: frozenset[str] = frozenset(),
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.features = features
        self.family = family
        self.config = dict(config)
        self.classes = tuple(classes)
        self.clip_shape = tuple(clip_shape)
        self.metadata = dict(metadata or {})
        self.fresh = fresh
        self.notes = list(notes)
        self._layout: torch.memory_format | None = None  # of the network's input; found when needed

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T] waveforms in [−1, 1] (or int16), or uint8 images [B, 1, H, W] → logits [B, K]."""
        logits: Tensor = self.network(self.features(clips))
        return logits

    @torch.no_grad()
    def logits(self, clips: Tensor) -> Tensor:
        """Return the logits [B, K] of clips on any device, in evaluation mode and without gradients."""
        was_training = self.network.training
        self.network.eval()
        x = self.features(clips.to(next(self.network.parameters()).device))
        if self._layout is None:
            self._layout = memory_format(self.network, x)
        logits: Tensor = self.network(x.to(memory_format=self._layout)).float()
        self.network.train(was_training)
        return logits

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the network: (1, mel bins, frames), or that of an image."""
        return self.features.output_shape(self.clip_shape)

    @property
    def sample_rate(self) -> int | None:
        """Samples per second that the front end expects; None for images."""
        return self.features.sample_rate


def deployed(model: Model, weights: Mapping[str, Tensor] | None = None) -> Model:
    """Return the model as it is saved, counted and exported: its network fused, if it can be.

    Args:
        model: not changed; returned itself if there is nothing to fuse.
        weights: state dict to take instead of the network's own.
    """
    network = model.network
    if not can_be_fused(network):
        return model
    family = network.family_when_fused()
    tensors = network.fused(weights or network.state_dict())
    network = rebuild_model(
        family,
        len(model.classes),
        model.config,
        tensors,
        model.input_shape,
        **changes(model.network),
    )
    return Model(
        network,
        model.features,
        family=family,
        config=model.config,
        classes=model.classes,
        clip_shape=model.clip_shape,
        metadata=model.metadata,
    )


def save(
    model: Model,
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    claimed: bool = False,
) -> None:
    """Write the model folder atomically; an older model there is replaced.

    Args:
        model: what to write.
        folder: destination. Other files beside an older model there are kept.
        weights: state dict to write instead of the network's own.
        claimed: whether the caller has claimed a folder above it, such as a run's.

    Raises:
        UserError: the folder holds something other than a model.
    """
    if not claimed:
        claim(folder, MODEL)
    own = deployed(model, weights)
    if own is not model:
        model, weights = own, None
    payload = tensor_bytes(weights or model.network.state_dict())
    quantization = quantization_of(model.network)
    description = {
        **model.metadata,
        "format": FORMAT,
        "architecture": model.family,
        "config": model.config,
        "widths": layer_widths(model.network),
        **changes(model.network),
        "classes": list(model.classes),
        "clip_shape": list(model.clip_shape),
        "input_shape": list(model.input_shape),
        "features": spec_to_json(model.features.spec),
        **({"quantization": asdict(quantization)} if quantization else {}),
        "weights": {
            "file": "model.safetensors",
            "sha256": hashlib.sha256(payload).hexdigest(),
            "parameters": sum(p.numel() for p in model.network.parameters()),
        },
    }
    with replaced_folder(folder, FILES) as new:
        write_bytes(new / "model.safetensors", payload)
        write_bytes(new / "model.json", f"{to_json(description, indent=2)}\n".encode())


@dataclass(frozen=True)
class Weights:
    """The weight file, as `model.json` describes it."""

    sha256: str


@dataclass(frozen=True)
class Description:
    """The model, as `model.json` describes it; see `Model`."""

    architecture: str
    config: dict[str, object]
    widths: dict[str, int]
    classes: Annotated[list[str], Meta(min_length=1)]
    clip_shape: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(min_length=1, max_length=3)]
    features: dict[str, object] | None
    weights: Weights
    quantization: Quantization | None = None
    removed_blocks: list[str] = field(default_factory=list)
    attributes: dict[str, int] = field(default_factory=dict)


def load(
    folder: str | Path, device: str | torch.device = "cpu", *, trust: Sequence[str] = ()
) -> Model:
    """Load a model folder, in evaluation mode.

    Args:
        folder: written by training, pruning or `cpprune import`.
        device: where the model goes.
        trust: modules whose code may be run if the folder names them, besides those that
            `cpprune.models.trust` already trusts.

    Returns:
        `model(wave_BT)` → logits; also `.features`, `.network`, `.classes`.

    Raises:
        UserError: no such folder, its files are damaged or do not fit together, or its network comes
            from a module that is not trusted.
    """
    folder = Path(folder)
    content = read_description(folder)
    file = folder / "model.json"
    with _described(file):
        description = typed(content, Description)
        spec = spec_from_json(description.features)
    if is_factory(description.architecture):
        require_trust(description.architecture, file, trust)
    tensors = _read_tensors(folder / "model.safetensors", description.weights.sha256)
    with _described(file):
        shape = description.clip_shape
        if len(shape) != (3 if spec is None else 1):
            raise ValueError(f"clip_shape {shape} is not {3 if spec is None else 1} number(s)")
        check_size(spec, shape)
        features = build_features(spec)
        input_shape, quantization = features.output_shape(shape), description.quantization
        ranges = tensors.pop(RANGES) if quantization else torch.empty(0)
        network = rebuild_model(
            description.architecture,
            len(description.classes),
            description.config,
            tensors,
            input_shape,
            removed_blocks=description.removed_blocks,
            attributes=description.attributes,
        )
        # Older versions left out any layer of that name.
        differing = dict(layer_widths(network).items() ^ description.widths.items())
        if differing.keys() - {"classifier"}:
            raise ValueError("widths are not those of the weights")
        if quantization:
            restore_quantized(network, input_shape, quantization, ranges)
    if wrong := not_finite(network):
        raise UserError(
            f"{folder / 'model.safetensors'}: holds numbers that are not finite, in {wrong[0]}: what it "
            "was trained with diverged (train again, with a lower optim.lr or with train.clip_norm), or "
            "the file was changed"
        )
    own = {"format", "input_shape", *Description.__dataclass_fields__}
    model = Model(
        network,
        features,
        family=description.architecture,
        config=description.config,
        classes=description.classes,
        clip_shape=shape,
        metadata={key: value for key, value in content.items() if key not in own},
    )
    return model.to(device).eval()


@contextmanager
def _described(file: Path) -> Iterator[None]:
    """Raise any error of the block as an UserError that names model.json."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else repr(error)
        raise UserError(
            f"{file}: does not describe the weights beside it ({reason}); copy the folder again from "
            "where it was made"
        ) from None


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    payload = read_bytes(path, MOST_WEIGHTS, "copy or export the model anew")
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise UserError(
            f"{path}: does not match the sha256 in model.json; it is damaged or belongs to "
            "another model: copy the folder again from where it was made"
        )
    return parse_tensors(payload, path)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file; names may share memory, as tied weights do."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        lying = tensor.detach().cpu().contiguous()
        memory = lying.untyped_storage().data_ptr()
        own[name] = lying.clone() if memory in seen else lying
        seen.add(memory)
    payload: bytes = safetensors.torch.save(own)
    return payload


def parse_tensors(payload: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: it is not a valid safetensors file.
    """
    try:
        tensors = safetensors.torch.load(payload)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: is not a safetensors file ({' '.join(str(error).split())})"
        ) from None
    return tensors


def read_description(folder: Path) -> dict[str, Any]:
    """Return the contents of `model.json`; raise UserError if there is none."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such model folder; give the folder that training wrote, such as "
            "runs/NAME/model"
        )
    path = folder / "model.json"
    if not path.is_file():
        hint = ""
        if any((folder / "model" / name).is_file() for name in ("model.json", "routes.json")):
            hint = f"; did you mean {folder / 'model'}?"
        elif (folder / "routes.json").is_file():
            hint = f" but several: name one, such as {folder / 'general'}"
        raise UserError(f"{folder}: holds no model.json, so it is not a model folder{hint}")
    description = read_json(path, dict[str, Any], nan=True)
    number = description.get("format")
    if type(number) is not int or number != FORMAT:
        raise UserError(f"{path}: has format {number!r}, this version reads format {FORMAT}")
    return description
