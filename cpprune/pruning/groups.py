"""Coupled channel groups and their removal.

Channels are grouped by Torch-Pruning's dependency graph (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cpprune.deps.torch import AnyConv
from cpprune.models.resize import LAYERS, output_width
from shards.errors import UserError


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose output channels can only be removed together.

    Attributes:
        layer: name of a convolution or linear layer of the group, which names the group.
        width: its number of output channels.
        blocks: number of equal blocks into which grouped convolutions, norms or gates divide them. A
            pruning unit is the channels at one position of every block: they are removed together.
        coupled: Torch-Pruning's group; None where it finds none.
    """

    layer: str
    width: int
    blocks: int
    coupled: Any

    @property
    def units(self) -> int:
        """Number of pruning units: channels per block."""
        return self.width // self.blocks

    def channels(self, units: Iterable[int]) -> list[int]:
        """Return the channels of these pruning units, sorted."""
        return sorted(b * self.units + unit for unit in units for b in range(self.blocks))


@dataclass(frozen=True)
class Graph:
    """A traced network.

    Attributes:
        dependencies: Torch-Pruning's dependency graph.
        example: the input that the network was traced with, [1, …].
    """

    dependencies: Any
    example: Tensor


@contextmanager
def dependency_graph(network: nn.Module, example: Tensor) -> Iterator[Graph]:
    """Trace the network and yield its graph.

    Modes and requires_grad are restored afterwards, also of layers that were pruned.

    Args:
        network: unwrapped module.
        example: one input, [1, …].

    Raises:
        UserError: the network cannot be traced.
    """
    modes = {name: module.training for name, module in network.named_modules()}
    trainable = {name: p.requires_grad for name, p in network.named_parameters()}
    try:
        for parameter in network.parameters():
            parameter.requires_grad_(True)  # tracing follows gradients
        network.eval()
        with torch.enable_grad(), torch.autocast(example.device.type, enabled=False):
            yield Graph(_trace(network, example), example)
    finally:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trainable[name])
            parameter.grad = None
        for name, module in network.named_modules():
            module.training = modes[name]


def _trace(network: nn.Module, example: Tensor) -> Any:
    import torch_pruning as tp

    try:
        # With a function of its own, so that the network is not tried on anything but the example.
        with _without_warnings():
            return tp.DependencyGraph().build_dependency(
                network, example, forward_fn=lambda whole, x: whole(x), verbose=False
            )
    except Exception as error:  # the network may be anyone's, and do anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"the network cannot be traced for pruning ({reason}); it must map one tensor of shape "
            f"{list(example.shape)} to logits"
        ) from error


def coupled_groups(graph: Graph, network: nn.Module) -> list[ChannelGroup]:
    """Return all groups, prunable or not; see `cpprune.pruning.prunable`."""
    names = {module: name for name, module in network.named_modules()}
    groups: list[ChannelGroup] = []
    seen: set[nn.Module] = set()
    for module in list(graph.dependencies.module2node):
        if module in seen or not isinstance(module, LAYERS):
            continue
        layer, width = names[module], output_width(module)
        try:
            group = _coupled(graph, network, layer, list(range(width)))
            together = coupled_outputs(graph, network, layer, [0])
        except Exception:  # Torch-Pruning fails in many ways on unknown operations: not prunable
            groups.append(ChannelGroup(layer, width, 1, None))
            continue
        pruned_outputs = graph.dependencies.is_out_channel_pruning_fn
        seen |= {item.dep.target.module for item in group if pruned_outputs(item.dep.handler)}
        blocks = math.lcm(*_divisions(group), _equal_parts(together, width))
        groups.append(ChannelGroup(layer, width, blocks if width % blocks == 0 else width, group))
    return groups


def _divisions(group: Any) -> list[int]:
    """Return the number of blocks of each grouped convolution and norm of the group."""
    numbers = [1]
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, AnyConv) and layer.groups < layer.out_channels:
            numbers.append(layer.groups)
        elif isinstance(layer, nn.GroupNorm):
            numbers.append(layer.num_groups)
    return numbers


def _equal_parts(channels: list[int], width: int) -> int:
    """Return n if the channels are the first of n equal parts, such as the two of a gated unit."""
    number = len(channels)
    return number if channels == list(range(0, width, max(1, width // number))) else 1


def coupled_outputs(graph: Graph, network: nn.Module, layer: str, channels: list[int]) -> list[int]:
    """Return the output channels of the layer that are removed with these, sorted."""
    return sorted(_coupled(graph, network, layer, channels)[0].idxs)


def exceeds_width(graph: Graph, group: ChannelGroup) -> bool:
    """Return whether the group contains channel indices beyond the width of a layer.

    It does where the graph takes another axis, such as the tokens of a mixer, for the channels.
    """
    dependencies = graph.dependencies
    for dependency, channels in group.coupled or []:
        outputs = dependencies.is_out_channel_pruning_fn(dependency.handler)
        count = dependencies.get_out_channels if outputs else dependencies.get_in_channels
        number = count(dependency.target)
        if number is not None and max(channels) >= number:
            return True
    return False


def remove_channels(graph: Graph, network: nn.Module, layer: str, channels: list[int]) -> None:
    """Remove output channels of a layer, and all that is coupled with them, in place.

    Args:
        graph: the network's, from `dependency_graph`.
        network: unwrapped module.
        layer: name of a convolution or linear layer.
        channels: indices of its output channels.
    """
    _coupled(graph, network, layer, channels).prune()


def _coupled(graph: Graph, network: nn.Module, layer: str, channels: list[int]) -> Any:
    import torch_pruning as tp

    module = network.get_submodule(layer)
    linear = isinstance(module, nn.Linear)
    prune = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
    with _without_warnings():
        return graph.dependencies.get_pruning_group(module, prune, idxs=channels)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Torch-Pruning's warnings: `cpprune.pruning.prunable` finds what it gets wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
