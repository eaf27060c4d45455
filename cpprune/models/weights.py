"""Weights from files of others: state dicts as torch or safetensors write them, fitted to a network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from torch import Tensor, nn

from cpprune.models.artifact import MOST_WEIGHTS, parse_tensors
from cpprune.models.finite import not_finite
from shards.errors import UserError
from shards.files.documents import read_bytes

# What Lightning, DDP and wrappers put before the names of parameters.
PREFIXES = ("module.", "model.", "net.", "network.")
NESTED = ("state_dict", "model")  # keys under which checkpoints hold a state dict


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file written by `torch.save` or safetensors; no code in it is run.

    Raises:
        UserError: no such file, or it holds no state dict.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        return parse_tensors(read_bytes(file, MOST_WEIGHTS), file)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's about what it cannot read
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{file}: is not a plain state dict ({first[:120]}); save model.state_dict() and use that"
        ) from None
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in content.items()
    ):
        raise UserError(f"{file}: is not a state dict: it must map names to tensors")
    return content


def load_weights(network: nn.Module, file: Path, left_out: Set[str] = frozenset()) -> int:
    """Give a network the weights in a file, in place.

    Args:
        network: of the architecture that the weights were trained in.
        file: see `read_state_dict`. Names may have a prefix, such as `model.`; then tensors without it,
            such as those of a front end, are not read.
        left_out: names of tensors of the network that keep their values.

    Returns:
        The number of tensors that were not read for want of the prefix.

    Raises:
        UserError: the weights are not of this architecture, which names the first tensor that differs,
            or are not finite.
    """
    found = {name.replace("_orig_mod.", ""): t for name, t in read_state_dict(file).items()}
    own = network.state_dict()
    tensors = _without_prefix(found, own.keys()) or found
    for name, tensor in own.items():
        if name in left_out:
            continue
        if name not in tensors:
            raise UserError(f"{file}: lacks {name} of the network, of shape {list(tensor.shape)}")
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{file}: {name} has shape {list(tensors[name].shape)}, but {list(tensor.shape)} in the "
                "network"
            )
    for name in tensors:
        if name not in own:
            raise UserError(f"{file}: has {name}, which the network has not")
    kept = {name: own[name] if name in left_out else tensors[name] for name in own}
    network.load_state_dict(kept)
    if wrong := not_finite(network):
        raise UserError(f"{file}: holds numbers that are not finite, in {wrong[0]}")
    return len(found) - len(tensors)


def _without_prefix(tensors: Mapping[str, Tensor], own: Set[str]) -> dict[str, Tensor]:
    """Return the tensors under the prefix below which names are those of the network; none without."""
    if own & tensors.keys():
        return dict(tensors)
    for prefix in PREFIXES:
        below = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if found := below and _without_prefix(below, own):
            return found
    return {}
