"""Batch normalisation over the batches of all processes.

With it the number of processes does not change what is learned. torch.nn.SyncBatchNorm does the same,
but on GPUs only; on CPUs it is made here of torch's own kernels, so that it costs what BatchNorm2d costs
and two short messages.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpprune.distributed import world_size


class _Normalise(torch.autograd.Function):
    """x, weight, bias → y, and mean, variance and number of values a channel, over all ranks.

    A rank may hold no rows. x may be of half precision; statistics and gradients' sums are float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = len(weight)
        own = weight.new_zeros(2 * channels + 1)
        if x.numel():
            # Given statistics to move, by nothing, it returns float32 for half precision too.
            still = own[:channels], own[channels:-1]
            mean, variance = torch.batch_norm_update_stats(x, still[0], still[1], 0.0)
            own = torch.cat((mean, variance, mean.new_tensor([x.numel() / channels])))
        rows = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(rows, own)
        ranks = torch.stack(rows)
        means, variances, counts = ranks[:, :channels], ranks[:, channels:-1], ranks[:, -1:]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        # Chan, Golub and LeVeque's way of joining variances: no difference of large numbers.
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return _scaled(x, mean, variance, weight, bias, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, mean, variance, count = ctx.saved_tensors
        dx, sums = torch.empty_like(x), weight.new_zeros(2 * len(weight))
        if x.numel():
            # As if mean and variance were constants.
            dx, *own = torch.ops.aten.native_batch_norm_backward(
                *(gradients[0], x, weight, mean, variance, None, None, False, ctx.eps),
                [True, True, True],
            )
            sums = torch.cat(own)
        d_weight, d_bias = sums.chunk(2)
        total = sums.clone()
        dist.all_reduce(total)
        # What they add as functions of x is affine in x, as y is.
        scale = weight * torch.rsqrt(variance + ctx.eps) / count
        slope, offset = (scale * part for part in total.chunk(2))
        dx.sub_(_scaled(x, mean, variance, slope, offset, ctx.eps))
        return dx, d_weight, d_bias, None


def _scaled(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    if not x.numel():
        return torch.empty_like(x)
    return nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the global batch, on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, C, F, T] → the same shape, normalised over the rows of all ranks."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normalised: Tensor = y
        return normalised


def use_global_batch_norm(network: nn.Module) -> None:
    """Give every BatchNorm2d of the network the statistics of the global batch, in place.

    Nothing changes with one process. Parameters, buffers and their names stay what they are.
    """
    if world_size() == 1:
        return
    for name, child in list(network.named_children()):
        if type(child) is nn.BatchNorm2d:
            new: nn.Module
            if next(child.parameters()).is_cuda:
                new = nn.SyncBatchNorm(child.num_features, child.eps, child.momentum or 0.1)
            else:
                new = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum)
            new.to(child.weight.device)
            new.train(child.training)
            for key, parameter in child._parameters.items():
                new._parameters[key] = parameter
            for key, buffer in child._buffers.items():
                new._buffers[key] = buffer
            setattr(network, name, new)
        else:
            use_global_batch_norm(child)
