"""Which channels hang together, and cutting them.

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
from shards.errors import InputError


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose output channels can only be cut together.

    Attributes:
        layer: name of the convolution or linear layer that stands for the group.
        width: its number of output channels.
        blocks: into how many equal blocks grouped convolutions and norms, or gates, divide them; every
            block loses the same of its channels, so a unit of cutting is this many channels.
        coupled: the group as Torch-Pruning holds it; None where it finds none.
    """

    layer: str
    width: int
    blocks: int
    coupled: Any

    def channels(self, units: Iterable[int]) -> list[int]:
        """Return the channels of these units: the same place in every block."""
        length = self.width // self.blocks
        return sorted(b * length + unit for unit in units for b in range(self.blocks))


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

    Modes and requires_grad are afterwards what they were, also for layers that were cut.

    Args:
        network: unwrapped module.
        example: one input, [1, …].

    Raises:
        InputError: the network cannot be traced.
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
        with _unsaid():
            return tp.DependencyGraph().build_dependency(
                network, example, forward_fn=lambda whole, x: whole(x), verbose=False
            )
    except Exception as error:  # the network may be anyone's, and do anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"the network cannot be traced for pruning ({reason}); it must map one tensor of shape "
            f"{list(example.shape)} to logits"
        ) from error


def coupled_groups(graph: Graph, network: nn.Module) -> list[ChannelGroup]:
    """Return all groups, whether they can be cut or not: see `cpprune.pruning.prunable`."""
    names = {module: name for name, module in network.named_modules()}
    groups: list[ChannelGroup] = []
    seen: set[nn.Module] = set()
    for module in list(graph.dependencies.module2node):
        if module in seen or not isinstance(module, LAYERS):
            continue
        layer, width = names[module], output_width(module)
        try:
            group = _coupled(graph, network, layer, list(range(width)))
            together = cut_together(graph, network, layer, [0])
        except Exception:  # the library fails in many ways on what it does not know: not to be cut
            groups.append(ChannelGroup(layer, width, 1, None))
            continue
        pruned_outputs = graph.dependencies.is_out_channel_pruning_fn
        seen |= {item.dep.target.module for item in group if pruned_outputs(item.dep.handler)}
        blocks = math.lcm(*_divisions(group), _equal_parts(together, width))
        groups.append(ChannelGroup(layer, width, blocks if width % blocks == 0 else width, group))
    return groups


def _divisions(group: Any) -> list[int]:
    """Return into how many equal blocks grouped layers divide the channels, each of them."""
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


def cut_together(graph: Graph, network: nn.Module, layer: str, channels: list[int]) -> list[int]:
    """Return the output channels of the layer that go when these are cut, sorted."""
    return sorted(_coupled(graph, network, layer, channels)[0].idxs)


def goes_too_far(graph: Graph, group: ChannelGroup) -> bool:
    """Return whether the group names channels that a layer does not have.

    So it is where the graph takes another axis for the channels, such as the tokens of a mixer.
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
    """Cut output channels of a layer, and all that hangs together with them, in place.

    Args:
        graph: the network's, from `dependency_graph`.
        network: unwrapped module.
        layer: name of a convolution or linear layer.
        channels: numbers of its output channels.
    """
    _coupled(graph, network, layer, channels).prune()


def _coupled(graph: Graph, network: nn.Module, layer: str, channels: list[int]) -> Any:
    import torch_pruning as tp

    module = network.get_submodule(layer)
    linear = isinstance(module, nn.Linear)
    prune = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
    with _unsaid():
        return graph.dependencies.get_pruning_group(module, prune, idxs=channels)


@contextmanager
def _unsaid() -> Iterator[None]:
    """Keep Torch-Pruning's warnings to itself: what it gets wrong, the probe finds out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
