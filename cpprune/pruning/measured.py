"""Limits on what is measured on a network, or counted in what is exported of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from cpprune.evaluation.complexity import latency
from cpprune.export.ram import Memory, ram_bytes
from cpprune.export.sizes import exported_bytes
from cpprune.pruning.budget import Limit

if TYPE_CHECKING:
    from cpprune.export.metadata import Precision

# (network, input shape, device) → milliseconds for one input
Measure = Callable[[nn.Module, Sequence[int], torch.device], float]


def amount(
    limit: Limit, network: nn.Module, input_shape: Sequence[int], measure: Measure = latency
) -> float:
    """Return how much a network takes of what is limited, in the unit of the limit's bound.

    Args:
        limit: on latency, RAM or an exported file.
        network: unwrapped module; it is not changed.
        input_shape: shape of one input, without the batch.
        measure: how a latency is measured, on the network's device.

    Raises:
        UserError: the network cannot be exported, or packages for it are not installed.
    """
    if limit.exported:
        return exported_bytes(network, input_shape, limit.exported)
    if limit.ram:
        return ram_bytes(network, input_shape, limit.ram)
    assert limit.quantity == "latency"
    return measure(network, input_shape, next(network.parameters()).device)


class Gauge:
    """`amount` for many networks that are cut from one.

    Args:
        network: that they are cut from.
        input_shape: as for `amount`.
        measure: as for `amount`.
    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int], measure: Measure) -> None:
        self.network, self.input_shape, self.measure = network, input_shape, measure
        self.memories: dict[Precision, Memory] = {}

    def amount(self, limit: Limit, narrower: nn.Module) -> float:
        """Return how much a network takes of what is limited."""
        if limit.ram is None:
            return amount(limit, narrower, self.input_shape, self.measure)
        if limit.ram not in self.memories:
            self.memories[limit.ram] = Memory(self.network, self.input_shape, limit.ram)
        return self.memories[limit.ram].of(narrower)
