"""An exponential moving average of the weights, which is what is evaluated and saved."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """A twin of a network that follows it slowly.

    Its decay is min(decay, (1 + n) / (10 + n)) after n steps, so that the first weights are soon
    forgotten; it is a function of the step, so there is nothing else to save.

    Args:
        network: unwrapped module, copied.
        decay: part of the old average that stays at each step.

    Attributes:
        network: the averaged weights and buffers, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval()

    @torch.no_grad()
    def follow(self, network: nn.Module, step: Tensor) -> None:
        """Move towards the network's weights and statistics.

        Args:
            network: what was copied; cut both alike.
            step: optimizer steps before this one, a scalar on the network's device.
        """
        part = 1 - torch.clamp((1 + step) / (10 + step), max=self.decay)
        mine, theirs = self.network.state_dict(), network.state_dict()
        floats = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        way = torch._foreach_sub([theirs[n] for n in floats], [mine[n] for n in floats])
        torch._foreach_mul_(way, part)
        torch._foreach_add_([mine[n] for n in floats], way)
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])
