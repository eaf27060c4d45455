"""Batch normalisation with the statistics of all processes: custom operators for CPUs and for GPUs.

torch.nn.SyncBatchNorm is made of the same kernels on GPUs, but fails where a process has no rows, in
half precision or in a captured step. As custom operators, compilers do not trace into them.

Shapes: x is [b, C, H, W], b rows of this rank (there may be none) of C channels; R ranks. x may be of
half precision; statistics are float32 then.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpprune.distributed.collectives import all_gather_equal
from cpprune.distributed.process_group import world_size

# The count of a rank without rows, as a GPU's kernel divides by counts: it rounds to none.
NO_ROWS = 1e-30


@torch.library.custom_op(
    "cpprune::global_statistics",
    mutates_args=("running_mean", "running_var"),
    device_types="cpu",
)
def global_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the statistics of the global batch, and move the running ones towards them.

    Returns:
        Mean [C]; spread [C]: the variance on a CPU, 1/√(variance + eps) on a GPU; and what the ranks
        have exchanged [R, 2C + 1]: mean, spread and number of values a channel, of each.
    """
    channels = x.shape[1]
    own = x.new_zeros(2 * channels + 1, dtype=statistics_dtype(x))
    if x.numel():
        # With running statistics (momentum 0) it returns float32 for half precision, too.
        still = own[:channels], own[channels:-1]
        mean, variance = torch.batch_norm_update_stats(x, still[0], still[1], 0.0)
        own = torch.cat((mean, variance, mean.new_full((1,), x.numel() / channels)))
    ranks = all_gather_equal(own)
    means, variances, counts = ranks[:, :channels], ranks[:, channels:-1], ranks[:, -1:]
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    # Variances combined after Chan, Golub and LeVeque, without a difference of large numbers.
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    if running_mean is not None:
        running_mean.lerp_(mean, momentum)
    if running_var is not None:
        running_var.lerp_(variance * count / (count - 1), momentum)
    return mean, variance, ranks


@global_statistics.register_kernel("cuda")
def _(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    if x.numel():
        mean, scale = torch.batch_norm_stats(x.contiguous(memory_format=_order(x)), eps)
        count = x.numel() / channels
    else:
        mean = x.new_zeros(channels, dtype=statistics_dtype(x))
        scale, count = torch.ones_like(mean), NO_ROWS
    own = torch.cat((mean, scale, mean.new_full((1,), count)))
    ranks = all_gather_equal(own)
    means, scales, counts = torch.split(ranks, [channels, channels, 1], dim=1)
    mean, scale = torch.batch_norm_gather_stats_with_counts(
        own, means, scales, running_mean, running_var, momentum, eps, counts.squeeze(1)
    )
    return mean, scale, ranks


@torch.library.custom_op("cpprune::normalise", mutates_args=(), device_types="cpu")
def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, spread: Tensor, ranks: Tensor, eps: float
) -> Tensor:
    """Return weight · (x − mean) / √(variance + eps) + bias, given the results of `global_statistics`.

    Its gradient is that of the whole, statistics and all; those of weight and bias are this rank's part.
    """
    return _scaled(x, mean, spread, weight, bias, eps)


@normalise.register_kernel("cuda")
def _(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, spread: Tensor, ranks: Tensor, eps: float
) -> Tensor:
    if not x.numel():
        return torch.empty_like(x)
    x = x.contiguous(memory_format=_order(x))
    return torch.batch_norm_elemt(x, weight, bias, mean, spread, eps)


@torch.library.custom_op("cpprune::normalise_backward", mutates_args=(), device_types="cpu")
def normalise_backward(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    spread: Tensor,
    ranks: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of x, and this rank's part of those of weight and bias."""
    deviation = torch.sqrt(spread + eps)
    d_x, d_weight, d_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    rows = max(x.numel() / len(weight), 1.0)
    if x.numel():
        both = _summable(d_y, x)
        # Computed as if this rank's rows were the whole batch; corrected below.
        d_x, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            *(*both, weight, mean, spread, mean, 1 / deviation, True, eps),
            [True, True, True],
        )
        d_x = d_x.contiguous(memory_format=_order(x))
    own = torch.cat((d_weight, d_bias))
    total = own.clone()
    dist.all_reduce(total)
    # The correction is affine in x, as y is.
    slope, offset = (total / ranks[:, -1:].sum() - own / rows).chunk(2)
    scale = weight / deviation
    d_x.sub_(_scaled(x, mean, spread, scale * slope, scale * offset, eps))
    return d_x, d_weight, d_bias


@normalise_backward.register_kernel("cuda")
def _(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    spread: Tensor,
    ranks: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if not x.numel():
        dist.all_reduce(weight.new_zeros(2 * len(weight)))
        return torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    one, other = _summable(d_y, x)
    *sums, d_weight, d_bias = torch.batch_norm_backward_reduce(
        one, other, mean, spread, weight, True, True, True
    )
    total = torch.cat(sums)
    dist.all_reduce(total)
    sum_d_y, sum_product = total.chunk(2)
    d_x = torch.batch_norm_backward_elemt(
        one, other, mean, spread, weight, sum_d_y, sum_product, ranks[:, -1].int()
    )
    return d_x.contiguous(memory_format=_order(x)), d_weight, d_bias


def _scaled(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    if not x.numel():
        return torch.empty_like(x)
    return nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


def _order(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _summable(d_y: Tensor, x: Tensor) -> list[Tensor]:
    # Both in one order, or their sums are rounded to their precision; and for half precision channels
    # last, or a GPU's kernel does not sum in float32.
    order = _order(x) if x.dtype == torch.float32 else torch.channels_last
    return [tensor.contiguous(memory_format=order) for tensor in (d_y, x)]


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the statistics of x."""
    return torch.promote_types(x.dtype, torch.float32)


@global_statistics.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    own = x.new_empty(2 * channels + 1, dtype=statistics_dtype(x))
    return own.new_empty(channels), own.new_empty(channels), own.new_empty(world_size(), len(own))


@normalise.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


@normalise_backward.register_fake
def _(d_y: Tensor, x: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, *statistics, ctx.eps = inputs
    ctx.save_for_backward(x, weight, *statistics)


def _backward(ctx, d_y):  # type: ignore[no-untyped-def]
    return *normalise_backward(d_y, *ctx.saved_tensors, ctx.eps), None, None, None, None


normalise.register_autograd(_backward, setup_context=_keep)
