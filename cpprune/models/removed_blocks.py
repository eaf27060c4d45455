"""Residual blocks that were removed from a network: they return their input."""

from __future__ import annotations

from collections.abc import Iterable

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
