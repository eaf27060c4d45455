"""What a trial cut computes in place of norms, means and attention: nothing that counts the channels."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from cpprune.models.intercept import Function, Intercept

ATTENTION: Function = functional.multi_head_attention_forward
DOT_PRODUCT: Function = functional.scaled_dot_product_attention
NORMS = (functional.layer_norm, functional.rms_norm, functional.group_norm)
MEANS = (torch.mean, Tensor.mean)
VARIANCES = (torch.var, Tensor.var)
DEVIATIONS = (torch.std, Tensor.std)


class TrialArithmetic(Intercept):
    """Context in which a network and a pruned copy of it give comparable outputs.

    Layers that normalise are replaced by a bounded function of each value, which does not depend on
    other channels: without bounds, random weights make a deep network chaotic, and rounding alone would
    make the outputs differ. They are called nonetheless, for the errors that they raise. Attention does
    not divide by the root of the number of channels of a head.

    Norms that are written out are treated alike: a mean is over as many entries as in the first run,
    which is that of the whole network. One that keeps its axis is 1 if it was over fewer entries in the
    run before, so that channels may be centred. Variances are means of squares.

    Attributes:
        fewer: means, by their number, that a pruned copy took over fewer entries.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fewer: set[int] = set()
        self._entries: list[int] = []  # of each mean, in the first run
        self._runs = self._means = 0

    def __enter__(self) -> TrialArithmetic:
        self._runs += 1
        self._means = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def call(self, func: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Call the function, or what takes its place."""
        if func is ATTENTION:
            return func(**_unscaled(_named(func, args, kwargs)))
        if func is DOT_PRODUCT and kwargs.get("scale") is None:
            return func(*args, **{**kwargs, "scale": 1.0})
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        if func is functional.batch_norm:
            return result.tanh()
        if func in NORMS:
            return _bounded(_named(func, args, kwargs), grouped=func is functional.group_norm)
        if func not in (*MEANS, *VARIANCES, *DEVIATIONS):
            return result
        x = cast("Tensor", args[0] if args else kwargs["input"])
        if func not in MEANS:
            result = _mean_square(x, result, args, kwargs)
        result = self._mean(x, result)
        return result.sqrt() if func in DEVIATIONS else result

    def _mean(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return the mean as it is to be, of x."""
        number, entries = self._means, x.numel() // max(1, mean.numel())
        self._means += 1
        if self._runs == 1:
            self._entries.append(entries)
        elif number < len(self._entries):
            if entries < self._entries[number]:
                self.fewer.add(number)
            if number in self.fewer and mean.ndim == x.ndim:
                return torch.ones_like(mean)
            return mean * (entries / self._entries[number])
        return mean


def _named(
    func: Function, args: Sequence[object], kwargs: Mapping[str, object]
) -> dict[str, object]:
    return inspect.signature(func).bind(*args, **kwargs).arguments


def _mean_square(
    x: Tensor, result: Tensor, args: Sequence[object], kwargs: Mapping[str, object]
) -> Tensor:
    """Return the mean of squares over the axes of a variance, in the shape of that."""
    axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
    whole = axes is None or isinstance(axes, bool)  # x.var(unbiased)
    axes = tuple(range(x.ndim)) if whole else cast("tuple[int, ...]", axes)
    return x.square().mean(axes, keepdim=True).view_as(result)


def _bounded(named: Mapping[str, object], *, grouped: bool) -> Tensor:
    """Return what stands for a norm of these arguments."""
    x = cast("Tensor", named["input"]).tanh()
    ones = (1,) * (x.ndim - 2) if grouped else ()
    weight, bias = (cast("Tensor | None", named.get(key)) for key in ("weight", "bias"))
    if weight is not None:
        x = x * weight.view(*weight.shape, *ones)
    return x if bias is None else x + bias.view(*bias.shape, *ones)


def _unscaled(named: dict[str, object]) -> dict[str, object]:
    """Return the arguments of an attention, with queries that make up for its scale."""
    width, heads = cast("int", named["embed_dim_to_check"]), cast("int", named["num_heads"])
    for key in ("in_proj_weight", "in_proj_bias"):
        projection = named.get(key)
        if isinstance(projection, Tensor):
            scale = torch.ones_like(projection)
            scale[:width] *= math.sqrt(width / heads)
            named[key] = projection * scale
    return named
