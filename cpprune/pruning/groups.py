"""Coupled channel groups and their removal.

Channels are grouped by Torch-Pruning's dependency graph (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from cpprune.deps.torch import AnyConv
from cpprune.deps.torch_pruning import (
    CoupledGroup,
    DependencyGraph,
    Edge,
    Item,
    decouple_broadcasts,
    trace,
)
from cpprune.models.intercept import AlwaysDouble
from cpprune.models.resize import LAYERS, output_width
from cpprune.pruning import rearranged
from cpprune.pruning.composite import COMPOSITE, kind_of, pruners
from cpprune.pruning.rearranged import Rearrangements, map_rearrangements
from cpprune.pruning.recurrent import RECURRENT, traced_as_one
from shards.errors import UserError, one_line


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose output channels can only be removed together.

    Attributes:
        layer: name of a convolution or linear layer of the group, which names the group.
        width: its number of output channels.
        blocks: number of equal blocks into which grouped convolutions, norms or gates divide them. A
            pruning unit is the channels at one position of every block: they are removed together.
        coupled: Torch-Pruning's group; None where it finds none.
        structure: kinds of the coupled layers and how they are coupled: equal for isomorphic groups.
        unit_of: the pruning unit of each channel, [width], where blocks do not lie one after the other,
            such as the places of one feature map; empty where they do.
        attributes: integers of modules that have to follow the number of units, such as the size of an
            attention's heads: "module.name", and how much of it is one unit's.
    """

    layer: str
    width: int
    blocks: int
    coupled: CoupledGroup | None
    structure: str = ""
    unit_of: tuple[int, ...] = ()
    attributes: tuple[tuple[str, int], ...] = ()

    @property
    def units(self) -> int:
        """Number of pruning units: channels per block."""
        return self.width // self.blocks

    def unit(self, channel: int) -> int:
        """Return the pruning unit that a channel belongs to."""
        return self.unit_of[channel] if self.unit_of else channel % self.units

    def channels(self, units: Iterable[int]) -> list[int]:
        """Return the channels of these pruning units, sorted."""
        wanted = set(units)
        return [channel for channel in range(self.width) if self.unit(channel) in wanted]

    def attributes_of(self, units: int) -> dict[str, int]:
        """Return the values of its attributes when that many units are left."""
        return {name: each * units for name, each in self.attributes}

    def members(self) -> list[list[int]]:
        """Return the channels of each pruning unit, [units, blocks]."""
        found: list[list[int]] = [[] for _ in range(self.units)]
        for channel in range(self.width):
            found[self.unit(channel)].append(channel)
        return found


@dataclass(frozen=True)
class Graph:
    """A traced network.

    Attributes:
        dependencies: Torch-Pruning's dependency graph.
        example: the input that the network was traced with, [1, …].
        splits: sizes of the axes that channels were reshaped into.
    """

    dependencies: DependencyGraph
    example: Tensor
    splits: Collection[tuple[int, ...]]


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
        double = AlwaysDouble() if example.dtype == torch.float64 else nullcontext()
        with torch.enable_grad(), double, torch.autocast(example.device.type, enabled=False):
            dependencies, splits = _trace(network, example)
            yield Graph(dependencies, example, splits)
    finally:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trainable[name])
            parameter.grad = None
        for name, module in network.named_modules():
            module.training = modes[name]


def _trace(
    network: nn.Module, example: Tensor
) -> tuple[DependencyGraph, Collection[tuple[int, ...]]]:
    rearrangements = Rearrangements()

    def forward(whole: nn.Module, x: Tensor) -> object:
        with rearrangements:
            return whole(x)

    try:
        kinds = {**pruners(), **rearranged.pruners()}
        with _without_warnings(), traced_as_one(network):
            graph = trace(network, example, kinds, forward, rearrangements.made)
            map_rearrangements(graph)
            decouple_broadcasts(graph)
            return graph, rearrangements.splits
    except Exception as error:  # the network may be anyone's, and do anything
        raise UserError(
            f"the network cannot be traced for pruning ({one_line(error)}); it must map one tensor of "
            f"shape {list(example.shape)} to logits"
        ) from error


def coupled_groups(graph: Graph, network: nn.Module) -> list[ChannelGroup]:
    """Return all groups, prunable or not; see `cpprune.pruning.prunable`."""
    names = {module: name for name, module in network.named_modules()}
    groups: list[ChannelGroup] = []
    seen: set[nn.Module] = set()
    for module in list(graph.dependencies.module2node):
        if module in seen or not isinstance(module, LAYERS):
            continue
        group = _group(graph, network, names[module])
        members = _pruned(graph, group.coupled or [], all_channels=True)
        seen |= set(members)
        # After a shuffle, for instance, the parts are equal only in the layers before it.
        roots = (_group(graph, network, names[other]) for other in members if other is not module)
        even = (one for one in chain([group], roots) if in_equal_parts(graph, network, one))
        groups.append(next(even, group) if group.coupled is not None else group)
    return groups


def _group(graph: Graph, network: nn.Module, layer: str) -> ChannelGroup:
    """Return the group of a layer, named by it."""
    width = output_width(network.get_submodule(layer))
    try:
        coupled = _coupled(graph, network, layer, list(range(width)))
        together = coupled_outputs(graph, network, layer, [0])
    except Exception:  # Torch-Pruning fails in many ways on unknown operations: not prunable
        return ChannelGroup(layer, width, 1, None)
    blocks = math.lcm(*map(divisions, coupled), _equal_parts(together, width))
    blocks = blocks if width % blocks == 0 else width
    return ChannelGroup(layer, width, blocks, coupled, _structure(graph, coupled))


def in_equal_parts(graph: Graph, network: nn.Module, group: ChannelGroup) -> bool:
    """Return whether a pruning unit of the group is coupled with no other channels of its layer."""
    channels = group.channels([group.units // 2])
    if group.coupled is None:
        return False
    return coupled_outputs(graph, network, group.layer, channels) == channels


def _structure(graph: Graph, group: CoupledGroup) -> str:
    """Return what isomorphic groups have in common: kinds of layers, and which of their sides are cut.

    Source: Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024; as in Torch-Pruning's
    `isomorphic=True`.
    """
    outputs = graph.dependencies.is_out_channel_pruning_fn
    edges = []
    for item in group:
        side = "out" if outputs(item.dep.handler) else "in"
        nodes = (item.dep.source.module, item.dep.target.module)
        edges.append(">".join(type(module).__name__ for module in nodes) + f" {side}")
    return ", ".join(edges)


def pruned_layers(
    graph: Graph, network: nn.Module, group: ChannelGroup, *, all_channels: bool = True
) -> list[str]:
    """Return the names of the layers that lose output channels with a group.

    Args:
        graph: the network's, from `dependency_graph`.
        network: unwrapped module.
        group: one of its groups.
        all_channels: only those all of whose channels are in the group.
    """
    names = {module: name for name, module in network.named_modules()}
    return [names[module] for module in _pruned(graph, group.coupled or [], all_channels)]


def _pruned(graph: Graph, group: Iterable[Item], all_channels: bool) -> list[nn.Module]:
    outputs = graph.dependencies.is_out_channel_pruning_fn
    members = [(i.dep.target.module, i.idxs) for i in group if outputs(i.dep.handler)]
    return [
        module
        for module, channels in members
        if isinstance(module, LAYERS)
        and (not all_channels or len(set(channels)) == output_width(module))
    ]


def divisions(item: Item) -> int:
    """Return the number of blocks into which a layer divides the channels of an item."""
    layer = item.dep.target.module
    if isinstance(layer, AnyConv) and layer.groups < layer.out_channels:
        return layer.groups
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, COMPOSITE):
        outputs = item.dep.handler.__name__ == "prune_out_channels"
        return kind_of(layer).blocks(layer, outputs=outputs)
    return 1


def _equal_parts(channels: list[int], width: int) -> int:
    """Return n if the channels are the first of n equal parts, such as the two of a gated unit."""
    number = len(channels)
    return number if channels == list(range(0, width, max(1, width // number))) else 1


def coupled_outputs(graph: Graph, network: nn.Module, layer: str, channels: list[int]) -> list[int]:
    """Return the output channels of the layer that are removed with these, sorted."""
    return sorted(_coupled(graph, network, layer, channels)[0].idxs)


def lost_at(graph: Graph, network: nn.Module, group: ChannelGroup) -> str | None:
    """Return where the graph takes something else for the group's channels; None if nowhere.

    It is a layer, parameter or operation with fewer channels than the graph looks for. There, another
    axis is taken for the channels, such as the tokens of a mixer, or channels were reshaped or reduced.
    """
    dependencies = graph.dependencies
    names: dict[object, str] = {module: name for name, module in network.named_modules()}
    names |= {parameter: name for name, parameter in network.named_parameters()}
    for item in group.coupled or []:
        outputs = dependencies.is_out_channel_pruning_fn(item.dep.handler)
        count = dependencies.get_out_channels if outputs else dependencies.get_in_channels
        number = count(item.dep.target)
        if number is not None and max(item.idxs) >= number:
            return names.get(item.dep.target.module, "an operation")
    return None


def remove_channels(graph: Graph, network: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
    """Remove output channels of layers, and all that is coupled with them, in place.

    The graph is of the network as it was, so that this can be called once only.

    Args:
        graph: the network's, from `dependency_graph`.
        network: unwrapped module.
        removed: indices of output channels, by the name of their convolution, linear or recurrent layer.
    """
    modules = set(network.modules())
    owners = {
        parameter: (module, name)
        for module in modules
        for name, parameter in module.named_parameters(recurse=False)
    }
    cuts: dict[tuple[object, object], tuple[Edge, set[int]]] = {}
    for layer, channels in removed.items():
        for item in _coupled(graph, network, layer, list(channels)):
            target = item.dep.target.module
            if target in modules or target in owners:
                key = (target, item.dep.handler)
                cuts.setdefault(key, (item.dep, set()))[1].update(item.idxs)
    with _without_warnings():
        for edge, places in cuts.values():
            made = edge(sorted(places))
            target = edge.target.module
            if isinstance(target, nn.Parameter):
                module, name = owners[target]
                setattr(module, name, made)


def _coupled(graph: Graph, network: nn.Module, layer: str, channels: list[int]) -> CoupledGroup:
    import torch_pruning as tp

    module = network.get_submodule(layer)
    linear = isinstance(module, nn.Linear)
    prune = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
    if isinstance(module, RECURRENT):
        prune = graph.dependencies.get_pruner_of_module(module).prune_out_channels
    with _without_warnings():
        return graph.dependencies.get_pruning_group(module, prune, idxs=channels)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Torch-Pruning's warnings: `cpprune.pruning.prunable` finds what it gets wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
