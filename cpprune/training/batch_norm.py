"""Batch normalisation over the batches of all processes.

It makes results independent of the number of processes. torch.nn.SyncBatchNorm does the same on GPUs,
but not where a process has no rows, in half precision or in a captured step. This implementation
consists of the kernels of torch's own batch normalisation and two short collectives, on CPUs and GPUs
alike, in custom operators that compilers do not trace into.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpprune.distributed.process_group import world_size


@torch.library.custom_op("cpprune::normalise", mutates_args=())
def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias → y, and mean, variance and number of values a channel, over all ranks.

    A rank may hold no rows. x may be of half precision; statistics are float32.
    """
    channels = len(weight)
    own = weight.new_zeros(2 * channels + 1)
    if x.numel():
        # With running statistics (momentum 0) it returns float32 for half precision, too.
        still = own[:channels], own[channels:-1]
        mean, variance = torch.batch_norm_update_stats(x, still[0], still[1], 0.0)
        own = torch.cat((mean, variance, mean.new_full((1,), x.numel() / channels)))
    ranks = own.new_empty((world_size(), len(own)))
    dist.all_gather(list(ranks), own)
    means, variances, counts = ranks[:, :channels], ranks[:, channels:-1], ranks[:, -1:]
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    # Variances combined after Chan, Golub and LeVeque, without a difference of large numbers.
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return _scaled(x, mean, variance, weight, bias, eps), mean, variance, count


@torch.library.custom_op("cpprune::normalise_backward", mutates_args=())
def _normalise_backward(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of x, and this rank's part of those of weight and bias."""
    deviation = torch.sqrt(variance + eps)
    d_x, d_weight, d_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    rows = max(x.numel() / len(weight), 1.0)
    if x.numel():
        order = _order(x)
        # Both in one order, or their sums are rounded to their precision; and for half precision
        # channels last, or a GPU's kernel does not sum in float32.
        summed = order if x.dtype == torch.float32 else torch.channels_last
        both = [tensor.contiguous(memory_format=summed) for tensor in (d_y, x)]
        # Computed as if this rank's rows were the whole batch; corrected below.
        d_x, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            *(*both, weight, mean, variance, mean, 1 / deviation, True, eps),
            [True, True, True],
        )
        d_x = d_x.contiguous(memory_format=order)
    own = torch.cat((d_weight, d_bias))
    total = own.clone()
    dist.all_reduce(total)
    # The correction is affine in x, as y is.
    slope, offset = (total / count - own / rows).chunk(2)
    scale = weight / deviation
    d_x.sub_(_scaled(x, mean, variance, scale * slope, scale * offset, eps))
    return d_x, d_weight, d_bias


def _scaled(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    if not x.numel():
        return torch.empty_like(x)
    return nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


def _order(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


@_normalise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *(torch.empty_like(weight) for _ in range(2)), weight.new_empty(())


@_normalise_backward.register_fake
def _(d_y: Tensor, x: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight, *output[1:])


def _backward(ctx, d_y, *_):  # type: ignore[no-untyped-def]
    return *torch.ops.cpprune.normalise_backward(d_y, *ctx.saved_tensors, ctx.eps), None


_normalise.register_autograd(_backward, setup_context=_keep)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, C, F, T] → the same shape, normalised over the rows of all ranks."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if not self.affine:
            weight = torch.ones(self.num_features, device=x.device)
            bias = torch.zeros_like(weight)
        y, mean, variance, count = _normalise(x, weight, bias, self.eps)
        if self.running_mean is not None:
            self._move(mean.detach(), (variance * count / (count - 1)).detach())
        normalised: Tensor = y
        return normalised

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        part = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(now, part)


def use_global_batch_norm(network: nn.Module) -> None:
    """Give every BatchNorm2d of the network the statistics of the global batch, in place.

    Nothing changes with one process. Parameters, buffers and their names stay what they are.
    """
    if world_size() == 1:
        return
    for name, child in list(network.named_children()):
        if type(child) is nn.BatchNorm2d:
            settings = child.eps, child.momentum, child.affine, child.track_running_stats
            new = GlobalBatchNorm2d(child.num_features, *settings)
            new.train(child.training)
            kept = *child.named_parameters(recurse=False), *child.named_buffers(recurse=False)
            for own, tensor in kept:
                setattr(new, own, tensor)
            setattr(network, name, new)
        else:
            use_global_batch_norm(child)
