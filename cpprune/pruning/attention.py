"""nn.MultiheadAttention in the graph of channels: every head loses the same positions.

A channel is one of the inputs and outputs, E of them, and with it a row of each of the three
projections and what the output projection makes of that. The number of heads stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn


class Attention:
    """How an attention is cut; see `cpprune.pruning.composite.Kind`."""

    residual = True

    def why_uncut(self, layer: nn.MultiheadAttention) -> str | None:
        """Return a reason where keys or values have a width of their own."""
        if layer.in_proj_weight is None:
            return "has keys or values of another width (kdim, vdim)"
        return None

    def blocks(self, layer: nn.MultiheadAttention, *, outputs: bool) -> int:
        """Return the number of heads."""
        return int(layer.num_heads)

    def width(self, layer: nn.MultiheadAttention, *, outputs: bool) -> int:
        """Return the number of channels."""
        return int(layer.embed_dim)

    def entries(
        self, layer: nn.MultiheadAttention, channels: Iterable[int], *, outputs: bool
    ) -> list[tuple[str, int, list[list[int]]]]:
        """Return where channels, [0, E), lie in the parameters."""
        size, alone = layer.embed_dim, [[channel] for channel in channels]
        in_each = [[part * size + channel for part in range(3)] for (channel,) in alone]
        places = {
            "in_proj_weight": {0: in_each, 1: alone},
            "in_proj_bias": {0: in_each},
            "out_proj.weight": {0: alone, 1: alone},
            "out_proj.bias": {0: alone},
            "bias_k": {2: alone},
            "bias_v": {2: alone},
        }
        return [
            (name, axis, of_channel)
            for name, _ in layer.named_parameters()
            for axis, of_channel in places[name].items()
        ]

    def check(
        self, layer: nn.MultiheadAttention, channels: Sequence[int], *, outputs: bool
    ) -> None:
        """Raise ValueError if the heads would lose channels at different positions."""
        size = layer.embed_dim // layer.num_heads
        heads = [
            {c % size for c in channels if c // size == head} for head in range(layer.num_heads)
        ]
        if any(head != heads[0] for head in heads):
            raise ValueError("the heads of an attention would lose different channels")
