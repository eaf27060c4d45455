"""Networks by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from cpprune.models import factory
from cpprune.models.bounds import BoundedBuild
from cpprune.models.cp_mobile import CPMobile
from cpprune.models.cp_resnet import CPResNet, imported_widths
from cpprune.models.resize import fit
from shards.files.documents import DocumentError, typed

FAMILIES: dict[str, Callable[..., nn.Module]] = {"cp_resnet": CPResNet, "cp_mobile": CPMobile}


def check_name(name: str) -> None:
    """Raise ValueError, with the nearest name, unless this network family is known."""
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"model.name={name!r}: choose one of {', '.join(FAMILIES)}{hint}")


def build_model(name: str, *, num_classes: int = 10, **config: Any) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        name: network family, e.g. "cp_resnet", or "package.module:function".
        num_classes: number of outputs.
        **config: what the family takes, e.g. `base_channels=32, channels_multiplier=2`, or
            `widths=[18, 37, 75]`, see `CPResNet`; or the function's keyword arguments.

    Returns:
        A module that maps x_BCFT [B, 1, F, T] to logits [B, num_classes].

    Raises:
        ValueError: unknown name, or a config that does not fit together.
    """
    if factory.is_factory(name):
        return factory.make(name, num_classes, config)
    check_name(name)
    return FAMILIES[name](num_classes, **config)


def rebuild_model(
    name: str,
    num_classes: int,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    input_shape: Sequence[int],
) -> nn.Module:
    """Build a network that was trained or pruned: its architecture, narrowed to its tensors.

    Args:
        name: as for `build_model`.
        num_classes: as for `build_model`.
        config: what the architecture was built with before anything was cut.
        tensors: its state dict.
        input_shape: shape of one input, without the batch.

    Raises:
        ValueError: the tensors are not of this architecture, or do not fit together.
        RuntimeError: names are missing or unknown.
    """
    if name == "cp_resnet" and not config.keys() & {"base_channels", "widths"}:
        # Imported by a version that did not write down what the network was cut from.
        groups = config.get("groups", [1])
        config = {**config, "widths": imported_widths(tensors, groups)}
    own_code = factory.is_factory(name)
    if own_code:
        with BoundedBuild(tensors, allocates=True):
            network = build_model(name, num_classes=num_classes, **config)
    else:
        _check_config(name, config)
        # Without memory, so that however wide it was, only what is left of it is allocated.
        with torch.device("meta"), BoundedBuild(tensors, allocates=False):
            network = build_model(name, num_classes=num_classes, **config)
    fitted = fit(network, tensors)
    _check_names(network, tensors)
    if own_code:
        network.load_state_dict(tensors)
    else:
        own = network.state_dict()
        copies = {key: tensor.to(own[key].dtype, copy=True) for key, tensor in tensors.items()}
        network.load_state_dict(copies, assign=True)
    if fitted:
        check_logits(network, input_shape, num_classes)
    return network


def _check_config(family: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError unless a config holds settings of a family, of their kinds."""
    check_name(family)
    kinds = get_type_hints(FAMILIES[family].__init__)
    settings = inspect.signature(FAMILIES[family]).parameters.keys() - {"num_classes"}
    for key, value in config.items():
        if key not in settings:
            raise ValueError(f"config.{key}: {family} has no such setting")
        try:
            typed(value, kinds[key])
        except DocumentError as error:
            raise ValueError(f"config.{key}: {error}") from None


def _check_names(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless tensors have the names and kinds of a network's own."""
    own = network.state_dict()
    for what, names in (
        ("lacks", own.keys() - tensors.keys()),
        ("has", tensors.keys() - own.keys()),
    ):
        if names:
            raise ValueError(f"the file {what} {min(names)}, and {len(names) - 1} more")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex():
            raise ValueError(f"{name} is {tensor.dtype}, not {own[name].dtype}")


def check_logits(network: nn.Module, input_shape: Sequence[int], num_classes: int) -> None:
    """Raise ValueError unless the network maps x [B, *input_shape] to logits [B, num_classes]."""
    modes = {module: module.training for module in network.modules()}
    tensor = next(iter(network.state_dict().values()), torch.zeros(()))
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, *input_shape, device=tensor.device))
    except Exception as error:  # the network may be anyone's
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"the network cannot take inputs of shape {list(input_shape)} ({reason})"
        ) from None
    finally:
        for module, training in modes.items():
            module.training = training
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != [2, num_classes]:
        raise ValueError(
            f"the network must map [2, {', '.join(map(str, input_shape))}] to logits "
            f"[2, {num_classes}], but gives {shape}"
        )
