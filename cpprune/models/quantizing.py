"""A forward pass, function by function: which layers it calls, and what of it is quantised.

Tensors are recognised by their id, as long as they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from cpprune.deps.torch import is_part
from cpprune.models.fake_quantize import Folded, fold
from cpprune.models.intercept import Function, Intercept

# Functions of torch by their names.
LAYERS = frozenset({"conv1d", "conv2d", "conv3d", "linear"})
SUMS = frozenset({"add", "__add__", "__radd__", "cat", "concat"})
RELU = frozenset({"relu", "relu6", "hardtanh"})
# Their results are among the numbers that they are given.
MOVES = frozenset(
    {
        *("max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "__getitem__"),
        *(
            "flatten",
            "unflatten",
            "reshape",
            "view",
            "permute",
            "transpose",
            "squeeze",
            "unsqueeze",
        ),
        *("contiguous", "channel_shuffle"),
    }
)
# They follow a layer, whose output is quantised before them.
FOLLOWERS = frozenset(
    {
        *("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean", "sum"),
        *("silu", "hardswish", "gelu", "sigmoid", "hardsigmoid", "tanh", "elu", "leaky_relu"),
        *("softmax", "mul", "__mul__", "__rmul__", "sub", "div"),
    }
)
OPERATORS_IN_PLACE = {
    "__iadd__": "add",
    "__imul__": "mul",
    "__isub__": "sub",
    "__itruediv__": "div",
}


class Arithmetic(Protocol):
    """What is done to activations and weights; see `FakeQuantizer`, which does it in training."""

    @property
    def layers(self) -> dict[str, Folded | None]:
        """The quantised layers by name, with what is folded into each."""

    def activation(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return x as it is quantised, and its scale."""

    def again(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return values of an activation that were only moved or selected, and its scale."""

    def weights(
        self, layer: str, weight: Tensor, bias: Tensor | None, input_scale: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return weights and bias of a layer as they are quantised."""


@dataclass
class _Value:
    """What is known of a tensor of the forward pass.

    Attributes:
        tensor: keeps its id from being used again.
        number: of the activation that it holds numbers of; None for an output that is not yet quantised.
        norm: whether it is the output of a layer that already does the batch normalisation to come.
        quantised: tensor and scale, once they were needed.
    """

    tensor: Tensor
    number: int | None = None
    norm: bool = False
    quantised: tuple[Tensor, Tensor] | None = None


class Quantizing(Intercept):
    """Context in which a network's forward pass is quantised.

    What a network computes in place is computed out of place: a value that is quantised has readers that
    need it as it was. Whoever reads the tensor from then on reads the result.

    Args:
        network: whose forward pass it is.
        arithmetic: what is done to activations and weights.

    Attributes:
        activations: number of quantised activations so far.
    """

    def __init__(self, network: nn.Module, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.arithmetic = arithmetic
        self.tensors, self.names = _tensors(network)
        self.activations = 0
        self._values: dict[int, _Value] = {}
        self._replacements: dict[int, tuple[Tensor, Tensor]] = {}

    def call(self, func: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Call the function on quantised tensors, where its kind is quantised."""
        args = [self._latest(value) for value in args]
        kwargs = {key: self._latest(value) for key, value in kwargs.items()}
        other, options = _out_of_place(func, kwargs)
        result = self._call(other, args, options)
        in_place = other is not func or options is not kwargs
        target = args[0] if args else None
        if in_place and isinstance(result, Tensor) and isinstance(target, Tensor):
            self._replace(target, result)
        return result

    def _call(self, func: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        name = getattr(func, "__name__", "")
        first = self._values.get(id(args[0])) if args else None
        if name in LAYERS:
            layer = _layer_of(self.names, *args, **kwargs)  # type: ignore[arg-type]
            if layer in self.arithmetic.layers:
                return self._layer(func, layer, *args, **kwargs)  # type: ignore[arg-type]
        elif func is functional.batch_norm and first is not None and first.norm:
            first.norm = False
            return first.tensor
        elif name in RELU and first is not None and first.number is None:
            return self._output(func(*args, **kwargs))
        elif name in SUMS:
            all_activations = not any(id(x) in self.names for x in _floats(args))
            if all_activations and len(list(_floats(args))) > 1:
                return self._output(func(*self._replaced(args, True), **kwargs))
            return func(*self._replaced(args, False), **kwargs)
        elif name in FOLLOWERS:
            return func(*self._replaced(args, False), **kwargs)
        elif name in MOVES and first is not None:
            x, _ = self._quantised(first.tensor)
            result = func(x, *args[1:], **kwargs)
            if isinstance(result, Tensor) and id(result) not in self._values:
                self._values[id(result)] = _Value(result, self._values[id(x)].number)
            return result
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and any(result is x for x in args):
            if name.endswith("_"):
                self._values.pop(id(result), None)
            return result.view_as(result)  # dropout gives another tensor in training
        return result

    def _replace(self, x: Tensor, result: Tensor) -> None:
        """Let the result take the place of a tensor, or of the part of a larger one that it is."""
        self._replacements[id(x)] = x, result
        if is_part(x):
            x.copy_(result)

    def _latest(self, value: object) -> object:
        """Return an argument with tensors that were changed in place as they are now."""
        if isinstance(value, list):
            return [self._latest(one) for one in value]
        if type(value) is tuple:
            return tuple(self._latest(one) for one in value)
        return self._replacements.get(id(value), (value, value))[1]

    def _layer(
        self,
        func: Function,
        layer: str,
        input: Tensor,  # noqa: A002 - torch's own name
        weight: Tensor,
        bias: Tensor | None = None,
        *rest: object,
        **options: object,
    ) -> Tensor:
        norm = self.arithmetic.layers[layer]
        if norm is not None:
            weight, bias = fold(weight, bias, norm, self.tensors)
        x, scale = self._quantised(input)
        own = self.arithmetic.weights(layer, weight, bias, scale)
        return self._output(func(x, *own, *rest, **options), norm is not None)

    def _output(self, y: object, norm: bool = False) -> Tensor:
        assert isinstance(y, Tensor)
        self._values[id(y)] = _Value(y, norm=norm)
        return y

    def _replaced(self, args: Sequence[object], every: bool) -> list[object]:
        """Return arguments with activations quantised: every one, or those that are quantised anyway."""
        return [
            self._replaced(value, every)
            if isinstance(value, list | tuple)
            else self._quantised(value)[0]
            if isinstance(value, Tensor)
            and value.is_floating_point()
            and (every or id(value) in self._values)
            else value
            for value in args
        ]

    def _quantised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = self._values.setdefault(id(x), _Value(x))
        if value.quantised is not None:
            return value.quantised
        if value.number is not None:
            value.quantised = self.arithmetic.again(x, value.number)
        else:
            value.number = self.activations
            self.activations += 1
            value.quantised = self.arithmetic.activation(x, value.number)
        self._values[id(value.quantised[0])] = value
        return value.quantised


def _out_of_place(
    func: Function, kwargs: Mapping[str, object]
) -> tuple[Function, Mapping[str, object]]:
    """Return a function and its options, or for one that works in place those that do not."""
    if kwargs.get("inplace"):
        return func, {**kwargs, "inplace": False}
    name = getattr(func, "__name__", "")
    base = OPERATORS_IN_PLACE.get(name, name.removesuffix("_"))
    if base != name and base in SUMS | RELU | FOLLOWERS:
        return getattr(Tensor, base), kwargs
    return func, kwargs


def _floats(args: Sequence[object]) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, list | tuple):
            yield from _floats(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            yield value


def _tensors(network: nn.Module) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Return a network's parameters and buffers by name, and their names by id."""
    tensors: dict[str, Tensor] = {**dict(network.named_parameters(remove_duplicate=False))}
    tensors |= dict(network.named_buffers(remove_duplicate=False))
    return tensors, {id(tensor): name for name, tensor in tensors.items()}


def _layer_of(
    names: Mapping[int, str],
    input: object,  # noqa: A002
    weight: Tensor,
    *_: object,
    **__: object,
) -> str:
    """Return the name of the layer whose weight a function is called with, or "" if it is none's."""
    name = names.get(id(weight), "")
    return name.removesuffix(".weight") if name.endswith(".weight") else ""


class Tracing(Intercept):
    """Context that finds the layers of a forward pass, and the batch normalisations behind them.

    Attributes:
        layers: by name, in the order of the forward pass, with what can be folded into each.
        repeated: layers that are called more than once.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = _tensors(network)[1]
        self.layers: dict[str, Folded | None] = {}
        self.repeated: set[str] = set()
        self._outputs: dict[int, tuple[Tensor, str]] = {}
        self._used: set[str] = set()

    def call(self, func: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Call the function, and note it if it is a layer or a batch normalisation."""
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor | list | tuple):
            return result
        for x in _floats([*args, *kwargs.values()]):
            _, layer = self._outputs.get(id(x), (x, ""))
            if layer in self._used:
                self.layers[layer] = None  # something else needs what is not normalised
            elif layer:
                self._used.add(layer)
                if func is functional.batch_norm:
                    self.layers[layer] = _folded(self.names, *args, **kwargs)  # type: ignore[arg-type]
        if getattr(func, "__name__", "") in LAYERS and isinstance(result, Tensor):
            layer = _layer_of(self.names, *args, **kwargs)  # type: ignore[arg-type]
            if layer in self.layers:
                self.repeated.add(layer)
            elif layer:
                self.layers[layer] = None
                self._outputs[id(result)] = result, layer
        return result


# The parameters after the first are those of `torch.nn.functional.batch_norm`.
def _folded(
    names: Mapping[int, str],
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Folded | None:
    """Return a batch normalisation, or None if it is not one of the network's own tensors."""
    found = [None if t is None else names.get(id(t), "") for t in (mean, variance, weight, bias)]
    if not found[0] or not found[1] or "" in found:
        return None
    return Folded(found[0], found[1], found[2], found[3], eps)
