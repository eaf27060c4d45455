"""What a channel matters for the loss, measured on a fixed slice of the training clips.

Every parameter gets a saliency an entry; the channels are then scored like magnitudes, with the
saliencies in the place of the weights. Each rank looks at its part of the slice; sums are taken in
whole numbers, so that any number of ranks finds the same to the last bit.

Shapes: N clips of the slice, n this rank's.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from cpprune.distributed.process_group import world_size

Saliency = dict[str, Tensor]


def taylor(network: nn.Module, x_nCFT: Tensor, label_n: Tensor, total: int) -> Saliency:
    """Return |w · ∂L/∂w| for each entry of each parameter, L the mean loss over the slice.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.

    Args:
        network: unwrapped module; it is not changed.
        x_nCFT: what the network sees of this rank's clips of the slice.
        label_n: their classes.
        total: N, the clips of the slice on all ranks.
    """
    return _over_ranks(network, x_nCFT, label_n, total, squared=False)


def hessian(network: nn.Module, x_nCFT: Tensor, label_n: Tensor, total: int) -> Saliency:
    """Return ½ · w² · E[(∂l/∂w)²] for each entry, the expectation over the clips of the slice.

    The second derivative is approximated by the empirical Fisher information.
    Source: LeCun et al., "Optimal Brain Damage", NeurIPS 1989; Theis et al., 2018.
    """
    return _over_ranks(network, x_nCFT, label_n, total, squared=True)


def _over_ranks(
    network: nn.Module, x_nCFT: Tensor, label_n: Tensor, total: int, squared: bool
) -> Saliency:
    # In evaluation mode each clip's gradient is its own, whatever else is in the batch.
    twin = copy.deepcopy(network).double().eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    parameters = dict(twin.named_parameters())
    sums = {name: ExactSum(p) for name, p in parameters.items()}
    with torch.enable_grad(), torch.autocast(x_nCFT.device.type, enabled=False):
        for i in range(len(x_nCFT)):
            logits = twin(x_nCFT[i : i + 1].double())
            loss = functional.cross_entropy(logits, label_n[i : i + 1])
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    sums[name].add(gradient.square() if squared else gradient)
    saliency = {}
    for name, parameter in parameters.items():
        mean = sums[name].over_ranks() / total
        weight = parameter.detach()
        value = 0.5 * weight.square() * mean if squared else (weight * mean).abs()
        saliency[name] = value.float()
    return saliency


class ExactSum:
    """A sum of float64 tensors that does not depend on their order.

    Numbers are kept as multiples of 2^-30 and their remainders as multiples of 2^-80, both in int64:
    up to 8,192 numbers below 2^20 each.

    Args:
        like: a tensor of the same shape and device.
    """

    def __init__(self, like: Tensor) -> None:
        self.coarse = torch.zeros_like(like, dtype=torch.int64)
        self.fine = torch.zeros_like(self.coarse)
        self.lost = torch.zeros_like(self.coarse)

    def add(self, value: Tensor) -> None:
        """Add a tensor."""
        value = value.detach()
        lost = ~(value.abs() < 2.0**20)  # too large, infinite or no number
        value = torch.where(lost, 0.0, value)
        coarse = (value * 2.0**30).round()
        self.coarse += coarse.long()
        self.fine += ((value - coarse * 2.0**-30) * 2.0**80).round().long()
        self.lost += lost

    def over_ranks(self) -> Tensor:
        """Return the sum over all ranks, float64; NaN where a number was too large."""
        if world_size() > 1:
            for part in (self.coarse, self.fine, self.lost):
                dist.all_reduce(part)
        total = self.coarse.double() * 2.0**-30 + self.fine.double() * 2.0**-80
        return torch.where(self.lost > 0, torch.nan, total)


MEASURES = {"taylor": taylor, "hessian": hessian}
