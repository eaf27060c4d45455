"""What was done to a network that its tensors do not tell: removed blocks, changed attributes.

Removed blocks return their input. Attributes are integers that the code of a module works with, such as
the size of an attention's heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

from torch import Tensor, nn

from cpprune.models.resize import LAYERS


class Removed(nn.Module):
    """What takes the place of a removed block."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        """Return the input."""
        return x


def removed_blocks(network: nn.Module) -> list[str]:
    """Return the names of the blocks that were removed from a network, in its order."""
    return [name for name, module in network.named_modules() if isinstance(module, Removed)]


def remove_blocks(network: nn.Module, names: Iterable[str]) -> None:
    """Remove blocks from a network, in place.

    Raises:
        ValueError: a name is none of the network, or that of something else than a block with layers.
    """
    for name in names:
        try:
            block = network.get_submodule(name)
        except AttributeError:
            raise ValueError(f"removed_blocks: the network has no {name}") from None
        inside = list(block.modules())[1:]
        layers = any(isinstance(module, LAYERS) for module in inside)
        if block is network or not layers or any(isinstance(m, Removed) for m in inside):
            raise ValueError(f"removed_blocks: {name} is no block of layers")
        replace_block(network, name, Removed().train(block.training))


def replace_block(network: nn.Module, name: str, block: nn.Module) -> None:
    """Put a module in the place of another, whose position among its parent's it takes."""
    parent, _, key = name.rpartition(".")
    setattr(network.get_submodule(parent), key, block)


CHANGED = "_changed_attributes"  # of a module: their names


def integers(module: nn.Module) -> dict[str, int]:
    """Return the integers among a module's own attributes, without torch's."""
    if isinstance(module, (*LAYERS, nn.MultiheadAttention)):
        return {}
    return {name: value for name, value in vars(module).items() if type(value) is int}


def changed_attributes(network: nn.Module) -> dict[str, int]:
    """Return the attributes that were changed, by "module.name"."""
    return {
        f"{path}.{name}" if path else name: vars(module)[name]
        for path, module in network.named_modules()
        for name in sorted(vars(module).get(CHANGED, ()))
    }


def change_attributes(network: nn.Module, values: Mapping[str, int]) -> None:
    """Change integers of a network's modules, in place.

    Args:
        network: unwrapped module.
        values: by "module.name", from 1 to what it was.

    Raises:
        ValueError: the network has no such integer, or the value is not within these bounds.
    """
    modules = dict(network.named_modules())
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        module = modules.get(path)
        before = None if module is None else integers(module).get(key)
        if module is None or before is None or not 1 <= value <= before:
            raise ValueError(f"attributes: the network has no {name} that can become {value}")
        setattr(module, key, value)
        setattr(module, CHANGED, {key, *vars(module).get(CHANGED, ())})


class Changes(TypedDict, total=False):
    """What is recorded of a network beside its tensors; a key is missing if there is nothing."""

    removed_blocks: list[str]
    attributes: dict[str, int]


def changes(network: nn.Module) -> Changes:
    """Return what was done to a network that its tensors do not tell."""
    found: Changes = {}
    if blocks := removed_blocks(network):
        found["removed_blocks"] = blocks
    if attributes := changed_attributes(network):
        found["attributes"] = attributes
    return found
