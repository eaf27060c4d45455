"""The example input that a network is traced or tried with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def example_input(network: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Return one input of zeros, [1, *input_shape], of the network's device and dtype."""
    parameter = next(network.parameters())
    return torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
