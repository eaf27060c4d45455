"""A network in the form that XNNPACK computes: batch normalisation folded, integers where it rounds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack

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

SCALE, ZERO_POINT = "scale", "zero_point"


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
    """Arithmetic of a fake-quantised network, in the operators for which XNNPACK computes with integers.

    Args:
        fake: of a trained or calibrated network.
    """

    def __init__(self, fake: FakeQuantizer) -> None:
        super().__init__(fake.layers)
        found = [activation_scale(of_one) for of_one in fake.ranges]
        self.scales = [(float(scale), int(zero_point)) for scale, zero_point in found]

    def activation(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return x as it is quantised, and its scale."""
        scale, zero_point = self.scales[number]
        how = (scale, zero_point, LOWEST, HIGHEST, torch.int8)
        operators = torch.ops.quantized_decomposed
        q = operators.quantize_per_tensor.default(x, *how)
        return operators.dequantize_per_tensor.default(q, *how), x.new_tensor(scale)

    def weights(
        self, layer: str, weight: Tensor, bias: Tensor | None, input_scale: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return weights and bias of a layer as they are quantised; XNNPACK holds the bias as int32."""
        if not self.stored:
            made = integers(weight, bias, input_scale)
            self.store(
                layer,
                weight=made.weight,
                bias=None if made.bias is None else made.bias * made.unit,
                **{
                    SCALE: made.scale,
                    ZERO_POINT: torch.zeros_like(made.scale, dtype=torch.int64),
                },
            )
        return self._weight(layer), None if bias is None else self.tensor(layer, "bias")

    def store_floats(self, layer: str) -> None:
        """Store the weights of a layer as the float32 numbers that its integers stand for."""
        self.store(layer, weight=self._weight(layer))

    def _weight(self, layer: str) -> Tensor:
        stored = self.tensor(layer, "weight")
        if stored.is_floating_point():
            return stored
        weight: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel.default(
            stored,
            self.tensor(layer, SCALE),
            self.tensor(layer, ZERO_POINT),
            *(0, -HIGHEST, HIGHEST, torch.int8),
        )
        return weight


class Lowered(nn.Module):
    """A network in evaluation, ready for torch.export: features [1, *input_shape] → logits [1, K].

    Args:
        network: in float32 or fake-quantised; it is not changed.
        input_shape: shape of one input, without the batch.
    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int]) -> None:
        super().__init__()
        twin = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        self.network = twin.float().cpu().eval()
        self.integers: Integers | None = None
        if is_quantized(twin):
            self.integers = Integers(twin.fake_quantize)
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
