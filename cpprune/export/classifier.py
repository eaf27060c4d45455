"""Models by their path: a model folder, a folder of routed models, or an exported file."""

from __future__ import annotations

from pathlib import Path

import torch

from cpprune.evaluation.complexity import complexity
from cpprune.evaluation.dcase import Complexity
from cpprune.export.target import ExportedFile, targets
from cpprune.models import artifact
from cpprune.models.quantized import is_quantized
from cpprune.models.routed import RoutedModel, is_routed, load_routed
from shards.errors import UserError


def load_classifier(
    path: Path, device: str | torch.device = "cpu", threads: int | None = None
) -> artifact.Model | ExportedFile | RoutedModel:
    """Load a model folder, routed models, or a file of `cpprune export` if its suffix is a target's.

    Args:
        path: of the folder or file.
        device: where the model of a folder goes; files are run on the CPU.
        threads: that a file is run on; None for the default of its runtime.

    Raises:
        UserError: it cannot be loaded, or the packages that this needs are not installed.
    """
    readable = {target.suffix: target for target in targets().values() if target.load}
    if path.suffix not in readable or path.is_dir():
        return load_routed(path, device) if is_routed(path) else artifact.load(path, device)
    target = readable[path.suffix]
    assert target.load is not None
    target.require(str(path))
    return target.load(path, threads=threads)


def load_for_audio(path: Path, value: str | None) -> tuple[artifact.Model | ExportedFile, int]:
    """Load a model for recordings, and its sample rate in Hz.

    Args:
        path: see `load_classifier`.
        value: of the column by which clips are routed to one of several models.

    Raises:
        UserError: see `load_classifier`; it takes images; or it is one model, and a value is given.
    """
    model = load_classifier(path)
    if isinstance(model, RoutedModel):
        model = model.model_for(value or "")
    elif value is not None:
        raise UserError(f"--value {value}: {path} is one model for all clips")
    if model.sample_rate is None:
        raise UserError(f"{path} takes images of shape {list(model.clip_shape)}, not audio")
    return model, model.sample_rate


def cost(model: artifact.Model | ExportedFile | RoutedModel) -> Complexity:
    """Return parameters, macs, bytes and DCASE's limits of a model; see `complexity`.

    Of routed models, those of the largest: limits hold for each device's model, not for their sum.
    """
    if isinstance(model, RoutedModel):
        return max(map(cost, (model.general, *model.models.values())), key=lambda c: c["macs"])
    if isinstance(model, artifact.Model):
        return complexity(model.network, model.input_shape)
    return model.complexity()


def precision(*models: artifact.Model | ExportedFile | RoutedModel) -> str:
    """Return the precision of models: fp32, fp16 or int8; with commas where they differ.

    A model folder is int8 if its network was trained to be quantised, and computes so.
    """
    found: set[str] = set()
    for model in models:
        if isinstance(model, RoutedModel):
            found |= set(precision(model.general, *model.models.values()).split(", "))
        elif isinstance(model, artifact.Model):
            found.add("int8" if is_quantized(model.network) else "fp32")
        else:
            found.add(str(model.about()["precision"]))
    return ", ".join(sorted(found))
