"""Conversion of weights of other projects into a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cpprune.audio.config import preset_spec
from cpprune.audio.frontend import LogMel
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.finite import not_finite
from cpprune.models.networks.cp_resnet import imported_widths
from cpprune.models.registry import rebuild_model
from cpprune.models.weights import PREFIXES, read_state_dict
from shards.errors import UserError
from shards.files.atomic import writing
from shards.files.locks import locked
from shards.files.ownership import claim
from shards.sources.tau2022 import LABELS


def import_state_dict(
    file: Path, out: Path, preset: str, classes: Sequence[str] | None = None, rho: int = 4
) -> Model:
    """Convert a CP-ResNet state dict of any widths into a model folder.

    Args:
        file: written by `torch.save`; read with weights_only, so that no code in it is run.
        out: destination: a missing or empty folder, or a model folder, which is replaced.
        preset: front end that the weights were trained with.
        classes: class names, by default those of TAU Urban Acoustic Scenes.
        rho: receptive-field parameter.

    Raises:
        UserError: the file cannot be read or holds no CP-ResNet; or `out` cannot be written, holds
            something other than a model, or is being written by another process.
    """
    tensors = read_state_dict(file)
    tensors = {_plain(name): t for name, t in tensors.items()}
    convolutions = {n: t for n, t in tensors.items() if n.endswith(".weight") and t.ndim == 4}
    widths = {n.removesuffix(".weight"): t.shape[0] for n, t in convolutions.items()}
    head = widths.pop("feed_forward.0", None)
    if head is None or "in_c.0" not in widths:
        raise UserError(
            f"{file}: holds no CP-ResNet: it lacks in_c.0.weight or feed_forward.0.weight (its first "
            f"tensors: {', '.join(list(tensors)[:3]) or 'none'})"
        )
    names = list(classes) if classes else list(LABELS)
    if len(names) != head:
        raise UserError(
            f"{file}: has {head} outputs, but {len(names)} classes were named (--classes)"
        )
    spec = preset_spec(preset)
    features = LogMel(spec)
    try:
        shape = _blocks_and_groups(convolutions)
        config = {"rho": rho, **shape, "widths": imported_widths(tensors, shape["groups"])}
        network = rebuild_model(
            "cp_resnet", head, config, tensors, features.output_shape([spec.sample_rate])
        )
    except (ValueError, RuntimeError, KeyError, ArithmeticError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{file}: does not fit a CP-ResNet with --rho {rho} ({reason})") from None
    if wrong := not_finite(network):
        raise UserError(
            f"{file}: holds numbers that are not finite, in {wrong[0]}: its training has diverged"
        )
    model = Model(
        network,
        features,
        family="cp_resnet",
        config=config,
        classes=names,
        clip_shape=(spec.sample_rate,),
    )
    save_imported(model, file, out)
    return model


def save_imported(model: Model, file: Path, out: Path) -> None:
    """Write a model that was made from a file of others.

    Args:
        model: with the weights of the file.
        file: whose name is recorded.
        out: destination: see `import_state_dict`.

    Raises:
        UserError: `out` cannot be written, holds something other than a model, or is being written by
            another process.
    """
    claim(out, artifact.MODEL, "--out")
    model.metadata = {"provenance": {"imported": file.name}, "metrics": {}}
    busy = f"{out}: another import is writing it"
    with writing(out, "--out"), locked(out.parent / f".{out.name}.lock", busy):
        artifact.save(model, out)


def _blocks_and_groups(convolutions: dict[str, Tensor]) -> dict[str, list[int]]:
    """Return the number of blocks and of convolution groups of each stage, from the tensors' shapes."""
    blocks, groups = [], []
    for stage in ("stage1", "stage2", "stage3"):
        names = {n.split(".")[1] for n in convolutions if n.startswith(f"{stage}.")}
        blocks.append(len(names))
        first = convolutions[f"{stage}.block1.conv1.weight"]
        second = convolutions[f"{stage}.block1.conv2.weight"]
        groups.append(first.shape[0] // second.shape[1])
    return {"blocks": blocks, "groups": groups}


def _plain(name: str) -> str:
    """Strip the prefixes that Lightning, DDP and torch.compile put before parameter names."""
    prefixes = (*PREFIXES, "_orig_mod.")
    while prefix := next((p for p in prefixes if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name
