"""Layers with channels in several parameters, or several times in one: recurrent ones and attention.

Torch-Pruning's own functions cut other entries of an LSTM, and any channels of heads, so they are
replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from cpprune.deps.torch_pruning import CoupledGroup, linear_item
from cpprune.models.resize import update_attributes
from cpprune.pruning.attention import Attention
from cpprune.pruning.recurrent import RECURRENT, Recurrent


class Kind(Protocol):
    """How a kind of layer is cut. `outputs` says whether channels are of its outputs or its inputs.

    Attributes:
        residual: whether its inputs and outputs are the same channels.
    """

    residual: bool

    def why_uncut(self, layer: Any) -> str | None:
        """Return why such a layer keeps its width; None for one that can be cut."""

    def blocks(self, layer: Any, *, outputs: bool) -> int:
        """Return the number of equal blocks, of which each loses the channels at the same positions."""

    def width(self, layer: Any, *, outputs: bool) -> int:
        """Return the number of channels."""

    def entries(
        self, layer: Any, channels: Iterable[int], *, outputs: bool
    ) -> list[tuple[str, int, list[list[int]]]]:
        """Return where channels lie in the parameters of a layer that can be cut.

        Returns:
            For each parameter and axis that is cut: its name, the axis, each channel's indices along it.
        """

    def check(self, layer: Any, channels: Sequence[int], *, outputs: bool) -> None:
        """Raise ValueError if the blocks would lose channels at different positions."""


_RECURRENT = Recurrent()
KINDS: dict[type[nn.Module], Kind] = {
    nn.MultiheadAttention: Attention(),
    **dict.fromkeys(RECURRENT, _RECURRENT),
}
COMPOSITE = tuple(KINDS)


def kind_of(layer: nn.Module) -> Kind:
    """Return how a layer of `COMPOSITE` is cut."""
    return next(kind for base, kind in KINDS.items() if isinstance(layer, base))


def why_uncut(layer: nn.Module) -> str | None:
    """Return why such a layer keeps its width; None for one that can be cut, and for others."""
    if isinstance(layer, nn.RNNBase):
        return _RECURRENT.why_uncut(layer)
    return kind_of(layer).why_uncut(layer) if isinstance(layer, COMPOSITE) else None


def _cut(layer: nn.Module, channels: Sequence[int], *, outputs: bool) -> nn.Module:
    kind = kind_of(layer)
    reason = kind.why_uncut(layer)
    if reason:
        raise ValueError(reason)
    kind.check(layer, channels, outputs=outputs)
    for name, axis, places in kind.entries(layer, channels, outputs=outputs):
        path, _, key = name.rpartition(".")
        parameter = layer.get_parameter(name)
        kept = torch.ones(parameter.shape[axis], dtype=torch.bool)
        kept[[place for of_channel in places for place in of_channel]] = False
        index = kept.nonzero().flatten().to(parameter.device)
        new = parameter.detach().index_select(axis, index)
        setattr(layer.get_submodule(path), key, nn.Parameter(new, parameter.requires_grad))
    for module in layer.modules():
        update_attributes(module)
    return layer


def pruners() -> dict[type[nn.Module], object]:
    """Return Torch-Pruning's pruning functions for the kinds of `COMPOSITE`."""
    from torch_pruning.pruner.function import BasePruningFunc

    class Pruner(BasePruningFunc):  # type: ignore[misc]
        TARGET_MODULES = COMPOSITE

        def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            return _cut(layer, idxs, outputs=True)

        def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            return _cut(layer, idxs, outputs=False)

        def get_out_channels(self, layer: nn.Module) -> int:
            return kind_of(layer).width(layer, outputs=True)

        def get_in_channels(self, layer: nn.Module) -> int:
            return kind_of(layer).width(layer, outputs=False)

    class Residual(Pruner):
        # By which Torch-Pruning knows that both are cut at once.
        prune_in_channels = Pruner.prune_out_channels

    return {layer: Residual() if kind.residual else Pruner() for layer, kind in KINDS.items()}


def scored(group: CoupledGroup | None) -> CoupledGroup | None:
    """Return the group with a linear layer of the same entries in place of each of `COMPOSITE`.

    A row holds all entries that are cut with a hidden unit, a column those that are cut with an input,
    so that criteria for linear layers score them.
    """
    if group is None or not any(isinstance(item.dep.target.module, COMPOSITE) for item in group):
        return group
    items = []
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, COMPOSITE):
            outputs = getattr(item.dep.handler, "__name__", "") == "prune_out_channels"
            item = linear_item(item, _linear(layer, outputs=outputs), outputs=outputs)
        items.append(item)
    return cast("CoupledGroup", items)  # criteria only look at the items


@torch.no_grad()
def _linear(layer: nn.Module, *, outputs: bool) -> nn.Linear:
    kind = kind_of(layer)
    width = kind.width(layer, outputs=outputs)
    rows: list[list[Tensor]] = [[] for _ in range(width)]
    for name, axis, places in kind.entries(layer, range(width), outputs=outputs):
        along = layer.get_parameter(name).movedim(axis, 0)
        for row, of_channel in zip(rows, places, strict=True):
            row.append(along[of_channel].flatten())
    weight = torch.stack([torch.cat(row) for row in rows])
    linear = nn.Linear(1, 1, bias=False, device="meta")
    linear.weight = nn.Parameter(weight if outputs else weight.T.contiguous())
    linear.out_features, linear.in_features = linear.weight.shape
    return linear
