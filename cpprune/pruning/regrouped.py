"""Other pruning units of a group: which channels may have to go together, where the graph errs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from cpprune.pruning.groups import ChannelGroup, Graph, coupled_outputs, divisions


def regrouped(graph: Graph, network: nn.Module, group: ChannelGroup) -> Iterator[ChannelGroup]:
    """Yield the group with other pruning units, the likeliest first; which of them hold, a trial tells.

    Channels go together that the graph couples with each other, that stand at the same position of the
    groups of a layer or, in turn, of each axis that channels of the network are reshaped into.
    """
    if group.coupled is None:
        return
    together = [*_coupled(graph, network, group), *_alike(graph, group)]
    axes: list[list[list[int]]] = [[]]
    for sizes in graph.splits:
        if group.width % math.prod(sizes) == 0:
            numbers = np.arange(group.width).reshape(-1, *sizes)
            axes += [
                np.moveaxis(numbers, axis, 0).reshape(sizes[axis - 1], -1).tolist()
                for axis in range(len(sizes), 0, -1)
            ]
    tried = {tuple(group.unit(channel) for channel in range(group.width))}
    for along in axes:
        unit_of = _united(group.width, [*together, *along])
        counts = np.bincount(unit_of)
        if unit_of not in tried and len(counts) > 1 and (counts == counts[0]).all():
            tried.add(unit_of)
            yield replace(group, blocks=int(counts[0]), unit_of=unit_of)


def _coupled(graph: Graph, network: nn.Module, group: ChannelGroup) -> Iterator[list[int]]:
    """Yield output channels of the group's layer that its graph couples with each other."""
    seen: set[int] = set()
    for channel in range(group.width):
        if channel not in seen:
            together = coupled_outputs(graph, network, group.layer, [channel])
            if together == [0]:  # each alone: so are the others
                return
            seen.update(together)
            yield together


def _alike(graph: Graph, group: ChannelGroup) -> Iterator[list[int]]:
    """Yield channels of the group's layer at the same positions of the groups of a coupled layer."""
    for item in group.coupled or []:
        number = divisions(item)
        outputs = graph.dependencies.is_out_channel_pruning_fn(item.dep.handler)
        count = (
            graph.dependencies.get_out_channels if outputs else graph.dependencies.get_in_channels
        )
        width = count(item.dep.target)
        if number > 1 and width is not None:
            positions: dict[int, list[int]] = {}
            for place, root in zip(item.idxs, item.root_idxs, strict=True):
                positions.setdefault(place % (width // number), []).append(root)
            yield from positions.values()


def _united(width: int, together: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the number of the set that each channel is in, when those that go together are united."""
    first = list(range(width))

    def root(channel: int) -> int:
        while first[channel] != channel:
            first[channel] = channel = first[first[channel]]
        return channel

    for channels in together:
        for other in channels[1:]:
            one, two = sorted((root(channels[0]), root(other)))
            first[two] = one
    roots = [root(channel) for channel in range(width)]
    numbers = {channel: number for number, channel in enumerate(sorted(set(roots)))}
    return tuple(numbers[channel] for channel in roots)
