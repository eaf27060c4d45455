"""Exponential moving average (EMA) of the weights, which is evaluated and saved in their place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cpprune.deps.torch import lerp_each_
from cpprune.models.quantized import RANGES


class Average:
    """The exponential moving average of a network's weights.

    After n steps its decay is min(decay, (1 + n) / (10 + n)), so that the first weights are soon
    forgotten. It is a function of the step, so there is nothing else to save.

    Args:
        network: unwrapped module, copied.
        decay: fraction of the old average that is kept at each step.

    Attributes:
        network: the averaged weights and buffers, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval()

    @torch.no_grad()
    def follow(self, network: nn.Module, step: Tensor) -> None:
        """Move the average towards the network's weights and running statistics.

        Args:
            network: the one that was copied; prune both alike.
            step: optimizer steps before this one, a scalar on the network's device.
        """
        weight = 1 - torch.clamp((1 + step) / (10 + step), max=self.decay)
        mine, theirs = self.network.state_dict(), network.state_dict()
        # Ranges of activations are a moving average already, and begin with none.
        floats = [n for n, tensor in mine.items() if tensor.is_floating_point() and n != RANGES]
        lerp_each_([mine[n] for n in floats], [theirs[n] for n in floats], weight)
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])
