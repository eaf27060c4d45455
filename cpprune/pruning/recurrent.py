"""Recurrent layers in the graph of channels: nn.GRU and nn.LSTM of one layer, in one or two directions.

An output channel is a hidden unit of one direction: its rows of every gate, its column of `weight_hh`.
Torch-Pruning's own function for an LSTM cuts other entries, so it is replaced.

Shapes: B batch, T frames, I input size, H hidden size, D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

RECURRENT = (nn.GRU, nn.LSTM)


class Recurrent:
    """How a recurrent layer is cut; see `cpprune.pruning.composite.Kind`.

    Its outputs are [0, D · H), its inputs [0, I). The directions lose the same hidden units.
    """

    residual = False

    def why_uncut(self, layer: nn.RNNBase) -> str | None:
        """Return a reason for several layers in one module, and for projections."""
        if layer.num_layers > 1:
            return f"has {layer.num_layers} recurrent layers in one module"
        return "has projections (proj_size)" if layer.proj_size else None

    def blocks(self, layer: nn.RNNBase, *, outputs: bool) -> int:
        """Return the number of directions for outputs, D; 1 for inputs."""
        return 2 if outputs and layer.bidirectional else 1

    def width(self, layer: nn.RNNBase, *, outputs: bool) -> int:
        """Return the number of channels."""
        return layer.hidden_size * self.blocks(layer, outputs=True) if outputs else layer.input_size

    def entries(
        self, layer: nn.RNNBase, channels: Iterable[int], *, outputs: bool
    ) -> list[tuple[str, int, list[list[int]]]]:
        """Return where channels lie in the parameters."""
        size, channels = layer.hidden_size, list(channels)
        found = []
        for name, parameter in layer.named_parameters(recurse=False):
            if not outputs:
                if name.startswith("weight_ih"):
                    found.append((name, 1, [[channel] for channel in channels]))
                continue
            gates, first = len(parameter) // size, size * name.endswith("_reverse")
            units = [c - first if 0 <= c - first < size else None for c in channels]
            rows = [[] if u is None else [g * size + u for g in range(gates)] for u in units]
            found.append((name, 0, rows))
            if name.startswith("weight_hh"):
                found.append((name, 1, [[] if u is None else [u] for u in units]))
        return found

    def check(self, layer: nn.RNNBase, channels: Sequence[int], *, outputs: bool) -> None:
        """Raise ValueError if the directions would lose different hidden units."""
        size = layer.hidden_size
        forward, backward = ({c % size for c in channels if c // size == d} for d in range(2))
        if outputs and layer.bidirectional and forward != backward:
            raise ValueError("the directions of a recurrent layer would lose different units")


@contextmanager
def traced_as_one(network: nn.Module) -> Iterator[None]:
    """Make every recurrent layer one operation of the graph, instead of those of each frame."""
    layers = [m for m in network.modules() if type(m) in RECURRENT and "forward" not in vars(m)]
    try:
        for layer in layers:
            layer.forward = _one_operation(layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _one_operation(layer: nn.Module) -> Callable[..., object]:
    def forward(input: object, hx: object = None) -> object:  # noqa: A002 - as torch calls them
        x, state = input, hx
        if not isinstance(x, Tensor):  # packed sequences: as without us
            return type(layer).forward(layer, x, state)
        with torch.no_grad():
            outputs, last = type(layer).forward(layer, x.detach(), state)
        outputs = _Outputs.apply(x, outputs)
        parts = last if isinstance(last, tuple) else (last,)
        # The last states have H channels, not D · H: they follow the outputs only in one direction.
        followed = [part + 0 * outputs.sum() for part in parts]
        if not layer.bidirectional:
            frame = outputs.select(1 if layer.batch_first and x.ndim == 3 else 0, -1)
            followed = [part + 0 * frame for part in parts]
        return outputs, tuple(followed) if isinstance(last, tuple) else followed[0]

    return forward


class _Outputs(torch.autograd.Function):
    """Outputs that depend on the inputs, to the graph of autograd, which is only looked at."""

    @staticmethod
    def forward(context: object, x: Tensor, outputs: Tensor) -> Tensor:
        return outputs.clone()
