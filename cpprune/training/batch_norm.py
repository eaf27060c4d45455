"""Batch normalisation over the batches of all processes.

It makes results independent of the number of processes.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.deps.torch import AnyBatchNorm
from cpprune.distributed.process_group import world_size
from cpprune.models.intercept import Function, Intercept
from cpprune.training.global_statistics import global_statistics, normalise, statistics_dtype


class _GlobalStatistics(Intercept):
    """Normalises by the statistics of the global batch wherever `batch_norm` would take the batch's."""

    def call(self, func: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Call the function, or in place of `batch_norm` that of the global batch."""
        if func is functional.batch_norm:
            return _batch_norm(*args, **kwargs)  # type: ignore[arg-type]
        return func(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` with the statistics of the global batch; x is [b, C, ...]."""
    if not training:
        return functional.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps
        )
    scale = x.new_ones(x.shape[1], dtype=statistics_dtype(x)) if weight is None else weight
    shift = torch.zeros_like(scale) if bias is None else bias
    image = x if x.ndim == 4 else x.reshape(*x.shape[:2], math.prod(x.shape[2:]), 1)
    with torch.no_grad():
        statistics = global_statistics(image, running_mean, running_var, momentum, eps)
    normalised: Tensor = normalise(image, scale, shift, *statistics, eps).view(x.shape)
    return normalised


class GlobalBatchNorm(AnyBatchNorm):
    """What `use_global_batch_norm` puts before the class of a batch normalisation."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the class itself does, but with the statistics of the global batch."""
        forward = super().forward
        if not self.training or world_size() == 1:
            return forward(*inputs)
        with _GlobalStatistics():
            return forward(*inputs)


class _OfAnyShape(AnyBatchNorm):
    """`torch.nn.SyncBatchNorm` without its own exchange of statistics."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass


_kinds: dict[type[nn.Module], type[nn.Module]] = {}


def _with_global_statistics(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _kinds:
        own = _OfAnyShape if issubclass(kind, nn.SyncBatchNorm) else kind
        _kinds[kind] = type(f"Global{kind.__name__}", (GlobalBatchNorm, own), {})
    return _kinds[kind]


def use_global_batch_norm(network: nn.Module) -> None:
    """Give every batch normalisation of the network the statistics of the global batch, in place.

    Subclasses keep what they do beside it, such as an activation. Nothing changes with one process.
    Parameters, buffers and their names stay what they are.
    """
    if world_size() == 1:
        return
    for module in network.modules():
        if isinstance(module, AnyBatchNorm) and not isinstance(module, GlobalBatchNorm):
            module.__class__ = _with_global_statistics(type(module))  # type: ignore[assignment]
