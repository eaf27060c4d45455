"""An exponential moving average of the weights, which is what is evaluated and saved."""

from __future__ import annotations

import copy

import torch
from torch import nn


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
    def follow(self, network: nn.Module, step: int) -> None:
        """Move towards the network's weights and statistics.

        Args:
            network: what was copied; cut both alike.
            step: optimizer steps before this one.
        """
        part = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.network.state_dict(), network.state_dict()
        floats = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[n] for n in floats], [theirs[n] for n in floats], part)
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])
