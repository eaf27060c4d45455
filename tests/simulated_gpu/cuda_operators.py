"""What is known of PyTorch's CUDA operators: which wait, what they launch, how a CPU computes them."""

import torch

aten = torch.ops.aten

# What stays PyTorch's own: it allocates or describes memory, and launches nothing.
NATIVE = {
    "empty.memory_format",
    "empty_strided",
    "as_strided",
    "unfold",
    "view",
    "view_as_real",
    "view_as_complex",
    "_reshape_alias",
    "resize_",
    "set_",
    "set_.source_Storage",
    "set_.source_Storage_storage_offset",
    "set_.source_Tensor",
    "record_stream",
    "is_set_to",
    "_efficientzerotensor",
}
# Kernels whose result has a shape or a value that the host waits for.
WAITS = {
    "_local_scalar_dense",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "bincount",
    "repeat_interleave.Tensor",
    "multinomial",
}
# Kernels that may be given tensors of the host that are no scalars.
HOST_INDICES = {"index.Tensor", "_index_put_impl_", "_unsafe_index.Tensor"}

# Kernels that an operator launches, from PyTorch's sources for channels-last images; others launch one.
KERNELS = {
    # counters zeroed, statistics, their update and inversion, normalisation; counters, sums, gradient
    "native_batch_norm": 4,
    "native_batch_norm_backward": 3,
    "batch_norm_update_stats": 3,
    "batch_norm_stats": 2,
    "batch_norm_backward_reduce": 2,
    "convolution_backward": 2,
}
# Tensors of each list that one launch of a multi-tensor kernel takes, by the number of lists.
LISTS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
DEPTH = {"_fused_adam_": 4, "_fused_adamw_": 4, "_fused_sgd_": 3, "_foreach_sub": 3}
DEPTH |= {"_foreach_copy_": 2, "_foreach_lerp_": 2}


# What the CPU has under another name, or not at all.


def _channels_last(*tensors):
    return all(t.dim() == 4 for t in tensors) and any(
        t.is_contiguous(memory_format=torch.channels_last) for t in tensors
    )


def _cudnn_convolution(x, weight, padding, stride, dilation, groups, *_):
    none = [0] * len(stride)
    y = torch.convolution(x, weight, None, stride, padding, dilation, False, none, groups)
    last = _channels_last(x, weight)
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _convolution_backward(d_y, x, weight, *more):
    found = aten.convolution_backward(d_y, x, weight, *more)
    if not _channels_last(x, weight):
        return found
    return tuple(
        t if t is None or t.dim() != 4 else t.contiguous(memory_format=torch.channels_last)
        for t in found
    )


def _cudnn_batch_norm(*args):
    return *aten.native_batch_norm(*args), torch.empty(0, dtype=torch.uint8)


def _cudnn_batch_norm_backward(x, d_y, weight, mean, var, saved_mean, saved_var, eps, reserve):
    saved = mean, var, saved_mean, saved_var
    return aten.native_batch_norm_backward(d_y, x, weight, *saved, True, eps, [True] * 3)


def _rows(x):
    """[b, C, …] → [n, C] in float32."""
    return x.float().movedim(1, -1).reshape(-1, x.shape[1])


def _batch_norm_stats(x, eps):
    var, mean = torch.var_mean(_rows(x), 0, correction=0)
    return mean, (var + eps).rsqrt()


def _gather_stats(x, means, invstds, running_mean, running_var, momentum, eps, counts):
    """As the kernel does it, which makes NaN of a count of 0 and of an infinite variance."""
    mean, squares, n = torch.zeros_like(means[0]), torch.zeros_like(means[0]), 0
    for other, invstd, count in zip(means, invstds, counts, strict=True):
        part = 1 / (n + count)
        squares += (invstd**-2 - eps) * count + (mean - other) ** 2 * n * count * part
        mean = n * part * mean + count * part * other
        n = torch.trunc(n + count)  # an integer; in a capture, nothing is there yet
    if running_mean is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(squares / (n - 1), momentum)
    return mean, (squares / n + eps).rsqrt()


def _batch_norm_elemt(x, weight, bias, mean, invstd, eps):
    return torch.batch_norm(x, weight, bias, mean, invstd**-2 - eps, False, 0.0, eps, False)


def _backward_reduce(d_y, x, mean, invstd, weight, *wanted):
    d, deviations = _rows(d_y), _rows(x) - mean
    sums = d.sum(0), (d * deviations).sum(0)
    return *sums, sums[1] * invstd, sums[0]


def _backward_elemt(d_y, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):
    n = counts.sum()
    shape = [1, -1, *[1] * (x.dim() - 2)]
    own = [v.view(shape) for v in (mean, invstd, weight, sum_dy / n, sum_dy_xmu / n)]
    d = d_y.float() - own[3] - (x.float() - own[0]) * own[1] ** 2 * own[4]
    return torch.empty_like(x).copy_(d * own[1] * own[2])


FUNCTIONS = {
    "cudnn_convolution": _cudnn_convolution,
    "convolution_backward": _convolution_backward,
    "_conv_depthwise2d": lambda x, w, kernel, bias, stride, padding, dilation: torch.convolution(
        x, w, bias, stride, padding, dilation, False, [0, 0], w.shape[0]
    ),
    "cudnn_batch_norm": _cudnn_batch_norm,
    "cudnn_batch_norm_backward": _cudnn_batch_norm_backward,
    "batch_norm_stats": _batch_norm_stats,
    "batch_norm_gather_stats_with_counts": _gather_stats,
    "batch_norm_elemt": _batch_norm_elemt,
    "batch_norm_backward_reduce": _backward_reduce,
    "batch_norm_backward_elemt": _backward_elemt,
    "_log_softmax": lambda x, dim, to_float: aten._log_softmax(
        x.float() if to_float else x, dim, False
    ),
}
