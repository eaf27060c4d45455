"""Limits on what is measured on a network, or counted in what is exported of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from cpprune.evaluation.complexity import latency
from cpprune.export.c_sizes import InC, flash_bytes, ram_bytes
from cpprune.export.check import median_ms
from cpprune.export.sizes import exported_bytes
from cpprune.export.timed import to_be_timed
from cpprune.pruning.budget import Limit

if TYPE_CHECKING:
    from cpprune.export.metadata import Precision
    from cpprune.export.target import Exported

# (network, input shape, device) → milliseconds for one input
Measure = Callable[[nn.Module, Sequence[int], torch.device], float]


def amount(
    limit: Limit, network: nn.Module, input_shape: Sequence[int], measure: Measure = latency
) -> float:
    """Return how much a network takes of what is limited, in the unit of the limit's bound.

    Args:
        limit: on latency, or on an export.
        network: unwrapped module; it is not changed.
        input_shape: shape of one input, without the batch.
        measure: how the latency in torch is measured, on the network's device.

    Raises:
        UserError: the network cannot be exported, or packages for it are not installed.
    """
    if limit.kind == "exported":
        return exported_bytes(network, input_shape, limit.precision)
    if limit.kind == "flash":
        return flash_bytes(network, input_shape, limit.precision)
    if limit.kind == "ram":
        return ram_bytes(network, input_shape, limit.precision)
    assert limit.kind == "latency"
    if limit.form:
        return median_ms(to_be_timed(network, input_shape, limit.form))
    return measure(network, input_shape, next(network.parameters()).device)


class Gauge:
    """`amount` for many networks that are cut from one. What does not change is found once.

    Args:
        network: that they are cut from.
        input_shape: as for `amount`.
        measure: as for `amount`.
    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int], measure: Measure) -> None:
        self.network, self.input_shape, self.measure = network, input_shape, measure
        self.in_c: dict[Precision, InC] = {}
        # By quantity and shapes of the tensors.
        self.counted: dict[object, float] = {}
        self.exports: dict[object, Exported] = {}

    def amount(self, limit: Limit, narrower: nn.Module) -> float:
        """Return how much a network takes of what is limited."""
        if limit.quantity == "latency":
            return amount(limit, narrower, self.input_shape, self.measure)
        key = (limit.quantity, *(tuple(tensor.shape) for tensor in narrower.state_dict().values()))
        if limit.kind == "latency":
            if key not in self.exports:
                self.exports[key] = to_be_timed(narrower, self.input_shape, limit.form)
            return median_ms(self.exports[key])
        if key not in self.counted:
            self.counted[key] = self._count(limit, narrower)
        return self.counted[key]

    def _count(self, limit: Limit, narrower: nn.Module) -> float:
        if limit.kind not in ("flash", "ram"):
            return amount(limit, narrower, self.input_shape)
        if limit.precision not in self.in_c:
            self.in_c[limit.precision] = InC(self.network, self.input_shape, limit.precision)
        of_one = self.in_c[limit.precision]
        return of_one.flash(narrower) if limit.kind == "flash" else of_one.ram(narrower)
