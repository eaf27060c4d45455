"""Networks by name.

To add a network, write `cpprune/models/networks/NAME.py` (and a test of it); nothing else names it:

    @register("NAME")
    class MyNet(nn.Module):
        def __init__(self, num_classes: int, *, width: int = 16) -> None: ...

        @property
        def classifier(self) -> nn.Module: ...  # the layer whose outputs are the classes: never pruned

        def forward(self, x_BCFT: Tensor) -> Tensor: ...  # [B, 1, F, T] → logits [B, num_classes]

        # Optional, for a network that is saved as one of another family with the same settings:
        def family_when_fused(self) -> str: ...
        def fused(self, tensors) -> dict[str, Tensor]: ...  # its state dict → that of the other

`model.name: NAME` selects it. The annotated keyword arguments of the class are its settings: keys of
`model` where `ModelConfig` has them, entries of `model.arguments` otherwise. A pruned network is rebuilt
by removing the recorded blocks of a fresh one and fitting the rest to the recorded tensors
(`cpprune.models.resize.fit`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Protocol, TypeGuard, TypeVar, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cpprune.models import factory, networks
from cpprune.models.bounds import BoundedBuild
from cpprune.models.changes import change_attributes, remove_blocks
from cpprune.models.resize import fit
from cpprune.settings.choices import wrong_choice
from shards.errors import one_line
from shards.files.documents import DocumentError, typed


class Fusible(Protocol):
    """A network that is saved, counted and exported as one of another family; see above."""

    def family_when_fused(self) -> str:
        """Return the other family, which has the same settings."""

    def fused(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict of the other network that does the same as this one with its own."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return its own, as any module does."""


def can_be_fused(network: nn.Module) -> TypeGuard[Fusible]:
    """Return whether a network is fused when it is saved."""
    return hasattr(network, "family_when_fused") and hasattr(network, "fused")


Network = TypeVar("Network", bound=type[nn.Module])

_registered: dict[str, type[nn.Module]] = {}


def register(name: str) -> Callable[[Network], Network]:
    """Make a class the network family of its module, which has the same name."""

    def add(network: Network) -> Network:
        assert network.__module__ == f"{networks.__name__}.{name}", f"{name} is not in {name}.py"
        _registered[name] = network
        return network

    return add


def network_class(name: str) -> type[nn.Module]:
    """Return the class of a network family.

    Raises:
        ValueError: no such family; the message suggests the nearest.
    """
    if name not in networks.NAMES:
        raise ValueError(wrong_choice("model.name", name, networks.NAMES))
    import_module(f"{networks.__name__}.{name}")
    return _registered[name]


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    """Return the settings of a network family: the keyword arguments of its class."""
    parameters = dict(inspect.signature(network_class(name)).parameters)
    del parameters["num_classes"]
    return parameters


def build_model(name: str, *, num_classes: int = 10, **config: object) -> nn.Module:
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
    return network_class(name)(num_classes, **config)


def rebuild_model(
    name: str,
    num_classes: int,
    config: Mapping[str, object],
    tensors: Mapping[str, Tensor],
    input_shape: Sequence[int],
    *,
    removed_blocks: Sequence[str] = (),
    attributes: Mapping[str, int] | None = None,
) -> nn.Module:
    """Rebuild a trained or pruned network: its architecture without blocks, narrowed to its tensors.

    Args:
        name: as for `build_model`.
        num_classes: as for `build_model`.
        config: what the architecture was built with before pruning.
        tensors: its state dict.
        input_shape: shape of one input, without the batch.
        removed_blocks: names of the blocks that were removed.
        attributes: integers of modules that changed, by "module.name".

    Raises:
        ValueError: tensors, blocks or attributes are not of this architecture, or do not fit together.
        RuntimeError: names are missing or unknown.
    """
    own_code = factory.is_factory(name)
    if own_code:
        with BoundedBuild(tensors, allocates=True):
            network = build_model(name, num_classes=num_classes, **config)
            _materialise(network, input_shape)
    else:
        complete = getattr(network_class(name), "complete_config", None)
        if complete is not None:
            config = complete(config, tensors)
        check_config(name, config)
        # On the meta device, so that only the pruned widths are ever allocated.
        with torch.device("meta"), BoundedBuild(tensors, allocates=False):
            network = build_model(name, num_classes=num_classes, **config)
    remove_blocks(network, removed_blocks)
    change_attributes(network, attributes or {})
    fitted = fit(network, tensors)
    _check_names(network, tensors)
    if own_code:
        network.load_state_dict(tensors)
    else:
        own = network.state_dict()
        copies = {key: tensor.to(own[key].dtype, copy=True) for key, tensor in tensors.items()}
        network.load_state_dict(copies, assign=True)
    if fitted or removed_blocks or attributes:
        check_logits(network, input_shape, num_classes)
    return network


def _materialise(network: nn.Module, input_shape: Sequence[int]) -> None:
    """Give the parameters of lazy modules their shapes, which a first input decides."""
    if any(is_lazy(parameter) for parameter in network.parameters()):
        with torch.no_grad():
            network.eval()(torch.zeros(2, *input_shape))


def check_config(family: str, config: Mapping[str, object], key: str = "config") -> None:
    """Raise ValueError, which names the key, for an unknown setting of a family or a wrong type."""
    settings = settings_of(family)
    types = get_type_hints(network_class(family).__init__)
    for name, value in config.items():
        if name not in settings:
            raise ValueError(f"{key}.{name}: {family} has no such setting")
        try:
            typed(value, types[name])
        except DocumentError as error:
            raise ValueError(f"{key}.{name}: {error}") from None


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
    except Exception as error:  # user code can raise anything
        raise ValueError(
            f"the network cannot take inputs of shape {list(input_shape)} ({one_line(error, 300)})"
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
