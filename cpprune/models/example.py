"""The example input that a network is traced or tried with, and how its inputs lie in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def memory_format(network: nn.Module, x_BCFT: Tensor) -> torch.memory_format:
    """Return channels last, in which convolutions are fastest, or contiguous if the network fails in it.

    A network does that takes its feature maps for contiguous, as `x.view(x.size(0), -1)` does.
    """
    try:
        network(x_BCFT[:1].to(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def example_input(network: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Return one input of zeros, [1, *input_shape], of the network's device and dtype."""
    parameter = next(network.parameters())
    return torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
