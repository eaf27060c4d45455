"""Which integers of a network's modules have to follow a cut; which of them do, a trial tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, combinations

from torch import nn

from cpprune.models.changes import integers
from cpprune.pruning.groups import ChannelGroup

MOST = 4  # integers of which every choice is tried


def with_attributes(network: nn.Module, group: ChannelGroup) -> Iterator[ChannelGroup]:
    """Yield the group with attributes that may have to follow the number of its units.

    They are integers of the modules that hold its layers, equal to the number of its units or of its
    channels in some layer, such as the number or size of an attention's heads and the product of both.
    The fewest come first.
    """
    places = dict(network.named_modules())
    touched = {item.dep.target.module for item in group.coupled or []}
    holders = [n for n, module in places.items() if not touched.isdisjoint(module.children())]
    widths = {group.units, *(len(item.idxs) for item in group.coupled or [])}
    found = [
        (f"{holder}.{name}" if holder else name, value // group.units)
        for holder in holders
        for name, value in integers(places[holder]).items()
        if value in widths and value % group.units == 0
    ]
    if len(found) <= MOST:
        for chosen in chain(*(combinations(found, n) for n in range(1, len(found) + 1))):
            yield replace(group, attributes=chosen)
