"""A network as converters for phones need it: batch normalisation folded, integers where it rounds."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cpprune.export.buffer_name import buffer_name
from cpprune.models.example import example_input
from cpprune.models.fake_quantize import (
    HIGHEST,
    LOWEST,
    FakeQuantizer,
    Folded,
    activation_scale,
    integers,
)
from cpprune.models.quantized import dequantize, is_quantized, traced
from cpprune.models.quantizing import Quantizing

if TYPE_CHECKING:
    from torch.fx import Node

SCALE, ZERO_POINT = "scale", "zero_point"
OPERATORS = torch.ops.quantized_decomposed


class Folding(nn.Module):
    """Arithmetic in float32, on weights into which batch normalisation is folded.

    A first pass stores the weights of every layer; the next ones use what was stored.

    Args:
        layers: by name, with the batch normalisation that is folded into each.

    Attributes:
        stored: whether the first pass is over.
    """

    def __init__(self, layers: dict[str, Folded | None]) -> None:
        super().__init__()
        self.layers = layers
        self.stored = False

    def activation(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return x, and a scale that is not used."""
        return x, x.new_ones(())

    def again(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return the same."""
        return self.activation(x, number)

    def weights(
        self, layer: str, weight: Tensor, bias: Tensor | None, input_scale: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return weights and bias of a layer as they are stored."""
        if not self.stored:
            self.store(layer, weight=weight, bias=bias)
        return self.tensor(layer, "weight"), None if bias is None else self.tensor(layer, "bias")

    def store(self, layer: str, **tensors: Tensor | None) -> None:
        """Keep tensors of a layer as buffers."""
        for key, tensor in tensors.items():
            if tensor is not None:
                self.register_buffer(buffer_name(layer, key), tensor.detach().clone().contiguous())

    def tensor(self, layer: str, key: str) -> Tensor:
        """Return a stored tensor of a layer."""
        return self.get_buffer(buffer_name(layer, key))


class Integers(Folding):
    """Arithmetic of a fake-quantised network, in the operators that converters make integers of.

    Args:
        fake: of a trained or calibrated network.
        int8_weights: whether weights are stored as integers, as XNNPACK takes them, or as the float32
            numbers that these stand for, which LiteRT's converter quantises itself.
    """

    def __init__(self, fake: FakeQuantizer, int8_weights: bool = True) -> None:
        super().__init__(fake.layers)
        found = [activation_scale(of_one) for of_one in fake.ranges]
        self.scales = [(float(scale), int(zero_point)) for scale, zero_point in found]
        self.int8_weights = int8_weights
        self.in_float: set[str] = set()  # layers that the converter does not quantise

    def activation(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return x as it is quantised, and its scale."""
        scale, zero_point = self.scales[number]
        how = (scale, zero_point, LOWEST, HIGHEST, torch.int8)
        q = OPERATORS.quantize_per_tensor.default(x, *how)
        return OPERATORS.dequantize_per_tensor.default(q, *how), x.new_tensor(scale)

    def weights(
        self, layer: str, weight: Tensor, bias: Tensor | None, input_scale: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return weights and bias of a layer as they are quantised; converters make the bias int32."""
        if not self.stored:
            made = integers(weight, bias, input_scale)
            zeros = torch.zeros_like(made.scale, dtype=torch.int64)
            self.store(
                layer,
                weight=made.weight,
                bias=None if made.bias is None else made.bias * made.unit,
                **{SCALE: made.scale, ZERO_POINT: zeros},
            )
            if not self.int8_weights:
                self.store(layer, weight=self._weight(layer))
        return self._weight(layer), None if bias is None else self.tensor(layer, "bias")

    def keep_float(self, layer: str) -> None:
        """Let the converter see the float32 numbers alone that the weights of a layer stand for."""
        self.store(layer, weight=self._weight(layer))
        self.in_float.add(layer)

    def _weight(self, layer: str) -> Tensor:
        weight = self.tensor(layer, "weight")
        if layer in self.in_float:
            return weight
        grid = self.tensor(layer, SCALE), self.tensor(layer, ZERO_POINT)
        how = (*grid, 0, -HIGHEST, HIGHEST, torch.int8)
        if weight.is_floating_point():
            weight = OPERATORS.quantize_per_channel.default(weight, *how)
        found: Tensor = OPERATORS.dequantize_per_channel.default(weight, *how)
        return found


class Lowered(nn.Module):
    """A network in evaluation, ready for torch.export: features [1, *input_shape] → logits [1, K].

    Args:
        network: in float32 or fake-quantised; it is not changed.
        input_shape: shape of one input, without the batch.
        int8_weights: see `Integers`.
    """

    def __init__(
        self, network: nn.Module, input_shape: Sequence[int], int8_weights: bool = True
    ) -> None:
        super().__init__()
        twin = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        self.network = twin.float().cpu().eval()
        self.integers: Integers | None = None
        if is_quantized(twin):
            self.integers = Integers(twin.fake_quantize, int8_weights)
            dequantize(twin)
        quantized = self.integers.layers if self.integers else {}
        found = traced(twin, input_shape)
        others = found.layers.keys() - found.repeated - quantized.keys()
        self.folding = Folding(
            {name: found.layers[name] for name in found.layers if name in others}
        )
        with torch.no_grad():
            self(example_input(twin, input_shape))
        for arithmetic in (self.folding, self.integers):
            if arithmetic:
                arithmetic.stored = True

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """x_BCFT → logits [B, K]."""
        with ExitStack() as stack:
            for arithmetic in (self.folding, self.integers):
                if arithmetic:
                    stack.enter_context(Quantizing(self.network, arithmetic))
            logits: Tensor = self.network(x_BCFT)
        return logits


def round_for(users: Iterable[Node], node: Node, scale: tuple[Any, ...]) -> None:
    """Let users of a node of a program use its values as they are quantised by this scale.

    Args:
        users: of the node.
        node: of the graph of a program of torch.export.
        scale: what quantize_per_tensor takes beside the values.
    """
    with node.graph.inserting_after(node):
        q = node.graph.call_function(OPERATORS.quantize_per_tensor.default, (node, *scale))
    with node.graph.inserting_after(q):
        x = node.graph.call_function(OPERATORS.dequantize_per_tensor.default, (q, *scale))
    for made in (q, x):
        made.meta.update(node.meta)
    for user in users:
        user.replace_input_with(node, x)
