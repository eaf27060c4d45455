"""What a channel matters for the loss, measured on a fixed slice of the training clips.

Every parameter gets a saliency an entry; the channels are then scored like magnitudes, with the
saliencies in the place of the weights. Each rank looks at its part of the slice; sums are taken in
float64 and rounded to float32, so that any number of ranks finds the same.

Shapes: N clips of the slice, n this rank's.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from cpprune.distributed import world_size

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
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with torch.enable_grad(), torch.autocast(x_nCFT.device.type, enabled=False):
        for i in range(len(x_nCFT)):
            logits = twin(x_nCFT[i : i + 1].double())
            loss = functional.cross_entropy(logits, label_n[i : i + 1])
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                sums[name] += gradient.square() if squared else gradient
    saliency = {}
    for name, parameter in parameters.items():
        mean = sums[name] / total
        if world_size() > 1:
            dist.all_reduce(mean)
        weight = parameter.detach()
        value = 0.5 * weight.square() * mean if squared else (weight * mean).abs()
        saliency[name] = value.float()
    return saliency


MEASURES = {"taylor": taylor, "hessian": hessian}
