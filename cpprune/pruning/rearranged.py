"""Rearranged channels in the graph of channels: parts of `chunk` and `split`, gated units, shuffles.

A rearrangement is found by doing it to the numbers of the channels. Torch-Pruning does not look at which
part of a split goes where, and takes a shuffle for a flattening, so each result becomes one operation of
the graph here, which knows the channels that it takes.

Shapes: C channels of the input, c of the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.deps.torch_pruning import DependencyGraph, map_channels
from cpprune.models.intercept import Function, Intercept

# Functions whose results hold the entries of their first argument in other places.
REARRANGING = {
    *("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"),
    *("view", "view_as", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim"),
    *("swapaxes", "swapdims", "squeeze", "unsqueeze", "contiguous", "channel_shuffle"),
    *("__getitem__", "narrow", "unbind", "flip", "roll", "pixel_shuffle", "pixel_unshuffle"),
}
REDUCING = {"sum", "mean", "amax", "amin", "norm", "logsumexp", "var", "std"}
PRODUCTS = {"matmul", "__matmul__", "bmm"}
CONVOLUTIONS = {
    getattr(functional, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)
}


class Rearranged(nn.Module):
    """An operation of the graph whose result holds some channels of its input, or all in another order.

    Where the input is cut in equal parts, or shuffled between them, every part has to lose the channels
    at the same positions.

    Args:
        taken: for each channel of the result, those of the input that it holds or was reduced from, [c].
        number: C.
    """

    def __init__(self, taken: Sequence[Sequence[int]], number: int) -> None:
        super().__init__()
        self.inputs, self.outputs = number, len(taken)
        single = all(len(channels) == 1 for channels in taken)
        part = _part_size([channel for (channel,) in taken], number) if single else number
        alike: dict[int, list[int]] = {}
        for channel in range(number):
            alike.setdefault(channel % part, []).append(channel)
        place = {channel: j for j, channels in enumerate(taken) for channel in channels}
        self.forwards = [
            sorted({place[other] for other in alike[channel % part] if other in place})
            for channel in range(number)
        ]
        self.backwards = [
            sorted({other for channel in channels for other in alike[channel % part]})
            for channels in taken
        ]


def _part_size(taken: Sequence[int], number: int) -> int:
    """Return the size of the parts whose channels at the same position go together; C: each alone."""
    size, first = len(taken), taken[0]
    if list(taken) == list(range(first, first + size)) and number % size == first % size == 0:
        return size
    step = taken[1] - first if size > 1 else 0
    if size == number and step > 1 and number % step == 0:
        shuffled = [place for start in range(step) for place in range(start, number, step)]
        return step if list(taken) == shuffled else number
    return number


class Contracted(nn.Module):
    """An operation whose result holds none of the channels of its input: they were summed over."""

    forwards: tuple[list[int], ...] = ()
    backwards: tuple[list[int], ...] = ()
    inputs = outputs = None


class _Operation(torch.autograd.Function):
    """A result that depends on its input, to the graph of autograd, which is only looked at."""

    @staticmethod
    def forward(context: object, x: Tensor, result: Tensor) -> Tensor:
        return result.clone()


class Rearrangements(Intercept):
    """Context in which a network is traced: rearrangements of channels become one operation each.

    Attributes:
        made: the operations, by their node in autograd's graph.
        splits: sizes of the axes that channels were reshaped into, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[object, nn.Module] = {}
        self.splits: dict[tuple[int, ...], None] = {}

    def call(self, func: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Call the function; note the axis of the channels in its result, and what it does to them."""
        x, name = args[0] if args else kwargs.get("input"), getattr(func, "__name__", "")
        if name == "glu" and isinstance(x, Tensor):
            value, gate = cast(
                "tuple[Tensor, ...]", self._rearranged(x, _halves, (x, *args[1:]), kwargs)
            )
            return value * torch.sigmoid(gate)
        if name in REARRANGING and isinstance(x, Tensor) and _source(x) is not None:
            return self._rearranged(x, func, args, kwargs)
        if func in CONVOLUTIONS and isinstance(x, Tensor) and "rearranged" in vars(x):
            x = self._taken(x, x.ndim - _dimensions(name) - 1)
            args = (x, *args[1:])
        result = func(*args, **kwargs)
        if name in REDUCING and isinstance(x, Tensor) and isinstance(result, Tensor):
            return self._reduced(x, result, kwargs.get("dim", args[1] if len(args) > 1 else None))
        if name in PRODUCTS and isinstance(x, Tensor) and isinstance(result, Tensor):
            return self._product(x, cast("Tensor", args[1]), result)
        first = x[0] if isinstance(x, list | tuple) and x else x
        if isinstance(result, Tensor) and isinstance(first, Tensor):
            axis = vars(first).get("channel_axis")
            if func in CONVOLUTIONS:
                axis = result.ndim - _dimensions(name) - 1
            elif func is functional.linear:
                axis = result.ndim - 1
            if axis is not None and (result.ndim == first.ndim or func is functional.linear):
                result.__dict__["channel_axis"] = axis
        return result

    def _product(self, x: Tensor, y: Tensor, result: Tensor) -> Tensor:
        """Return a product of matrices, such as that of queries and keys, with its channels noted."""
        axis_x, axis_y = (vars(operand).get("channel_axis") for operand in (x, y))
        if axis_x == x.ndim - 1 and axis_y == y.ndim - 2:
            result = self._made(result, result, Contracted())
        elif axis_y == y.ndim - 1:
            result.__dict__["channel_axis"] = result.ndim - 1
        return result

    def _made(self, whole: Tensor, result: Tensor, operation: nn.Module) -> Tensor:
        """Return the result as that of an operation on `whole`."""
        result = cast("Tensor", _Operation.apply(whole, result.detach()))
        self.made[result.grad_fn] = operation
        return result

    def _taken(self, x: Tensor, axis: int) -> Tensor:
        """Return a tensor whose channels lie along several axes as one with its channels on one axis."""
        whole, numbers = _rearrangement(x)
        operation = _collected(whole, numbers, axis)
        if operation is not None:
            x = self._made(whole, x, operation)
            x.__dict__["channel_axis"] = axis
        return x

    def _reduced(self, x: Tensor, result: Tensor, axes: object) -> Tensor:
        """Return what x was reduced to along some axes, with its channels noted."""
        source = _source(x)
        if source is None or not isinstance(axes, int | tuple | list):
            return result
        whole, numbers = source
        gone = {axis % x.ndim for axis in ([axes] if isinstance(axes, int) else axes)}
        varying = {a for a in range(x.ndim) if (numbers != numbers.narrow(a, 0, 1)).any()}
        keeps = result.ndim == x.ndim
        if varying <= gone:
            return self._made(result, result, Contracted())
        if len(varying - gone) == 1:
            (axis,) = varying - gone
            if varying & gone:
                operation = _collected(whole, numbers, axis)
                if operation is None:
                    return result
                result = self._made(whole, result, operation)
            result.__dict__["channel_axis"] = axis if keeps else axis - sum(a < axis for a in gone)
        return result

    def _rearranged(
        self, x: Tensor, func: Function, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        source = _source(x)
        results = func(*args, **kwargs)
        if source is None:
            return results
        whole, numbers = source
        numbered = func(numbers, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
        if isinstance(results, Tensor):
            return self._operation(whole, results, cast("Tensor", numbered))
        pairs = zip(
            cast("Sequence[Tensor]", results), cast("Sequence[Tensor]", numbered), strict=True
        )
        return tuple(self._operation(whole, *pair) for pair in pairs)

    def _operation(self, whole: Tensor, result: Tensor, numbers: Tensor) -> Tensor:
        """Return the result as an operation on `whole`, if it holds some or all channels of that."""
        if (
            numbers.shape != result.shape or not result.numel()
        ):  # a view as another type, or nothing
            return result
        axes = [a for a in range(numbers.ndim) if (numbers != numbers.narrow(a, 0, 1)).any()]
        if len(axes) != 1:  # channels along several axes, which may become one again
            result.__dict__["rearranged"] = whole, numbers
            order = numbers[tuple(slice(None) if a in axes else 0 for a in range(numbers.ndim))]
            if (order.flatten().diff() == 1).all():
                self.splits[tuple(order.shape)] = None
            return result
        axis = axes[0]
        number = whole.shape[vars(whole)["channel_axis"]]
        taken = numbers.movedim(axis, 0).flatten(1)[:, 0].tolist()
        if len(set(taken)) == len(taken) and taken != list(range(number)):
            result = self._made(whole, result, Rearranged([[channel] for channel in taken], number))
        if len(set(taken)) == len(taken):
            result.__dict__["channel_axis"] = axis
        return result


def _source(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what x is a rearrangement of, at least itself, and the number of each entry's channel."""
    if "rearranged" in vars(x):
        return _rearrangement(x)
    axis = vars(x).get("channel_axis")
    if axis is None or axis >= x.ndim or not x.requires_grad:
        return None
    shape = [1] * x.ndim
    shape[axis] = -1
    return x, torch.arange(x.shape[axis]).view(shape).expand(x.shape).contiguous()


def _rearrangement(x: Tensor) -> tuple[Tensor, Tensor]:
    return cast("tuple[Tensor, Tensor]", vars(x)["rearranged"])


def _collected(whole: Tensor, numbers: Tensor, axis: int) -> Rearranged | None:
    """Return the operation that leaves one axis of the channels; None if one is there more than once."""
    number = whole.shape[vars(whole)["channel_axis"]]
    taken = [sorted(set(part.flatten().tolist())) for part in numbers.unbind(axis)]
    return Rearranged(taken, number) if sum(map(len, taken)) == number else None


def _halves(x: Tensor, dim: int = -1) -> tuple[Tensor, ...]:
    return x.chunk(2, dim)


def _dimensions(name: str) -> int:
    """Return the number of spatial dimensions of a convolution."""
    return int(name[-2])


def map_rearrangements(graph: DependencyGraph) -> None:
    """Tell a graph how the channels of its rearrangements correspond."""
    for node in graph.module2node.values():
        if isinstance(node.module, Rearranged | Contracted):
            map_channels(node, node.module.forwards, node.module.backwards)


def pruners() -> dict[type[nn.Module], object]:
    """Return Torch-Pruning's pruning functions for the operations, which have nothing to prune."""
    from torch_pruning.pruner.function import BasePruningFunc

    class Pruner(BasePruningFunc):  # type: ignore[misc]
        TARGET_MODULES = (Rearranged, Contracted)

        def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            return layer

        prune_in_channels = prune_out_channels

        def get_out_channels(self, layer: Rearranged | Contracted) -> int | None:
            return layer.outputs

        def get_in_channels(self, layer: Rearranged | Contracted) -> int | None:
            return layer.inputs

    return {kind: Pruner() for kind in (Rearranged, Contracted)}
