"""Fake quantisation: tensors rounded to the numbers that int8 can hold, and still trained in float32.

A number x is held as the integer q = round(x / scale) + zero point, and stands for (q − zero point) ·
scale. Weights have one scale for each output channel and the zero point 0; activations have one scale
and one zero point for each tensor; a bias is int32, in units of the product of both scales. The gradient
passes rounding unchanged, and is 0 where an activation lies outside of its range.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shards.errors import UserError

BITS = 8
LOWEST, HIGHEST = -128, 127  # of an activation; a weight is from −127 to 127
MOMENTUM = 0.01  # of the moving average of ranges
SMALLEST_SCALE = 1e-12
MOST_BIAS = 2.0**30  # steps: int32 holds twice as many


class Folded(NamedTuple):
    """A batch normalisation that is folded into the layer before it, by the names of its tensors.

    Attributes:
        mean: running mean.
        variance: running variance.
        weight: γ, or None.
        bias: β, or None.
        eps: added to the variance.
    """

    mean: str
    variance: str
    weight: str | None
    bias: str | None
    eps: float


def activation_scale(range_2: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale (float32) and zero point (int32) of activations from range_2 = (lowest, highest).

    The range holds 0, which is exact then.
    """
    low, high = range_2.unbind()
    scale = ((high - low) / (HIGHEST - LOWEST)).clamp(min=SMALLEST_SCALE)
    zero_point = (LOWEST - low / scale).round().clamp(LOWEST, HIGHEST)
    return scale, zero_point.to(torch.int32)


def weight_scale(weight: Tensor, bias: Tensor | None, input_scale: Tensor) -> Tensor:
    """Return the scale of each output channel of weights [O, …], for which int32 can hold the bias."""
    scale = weight.flatten(1).abs().amax(1) / HIGHEST
    if bias is not None:
        scale = torch.maximum(scale, bias.abs() / (input_scale * MOST_BIAS))
    return scale.clamp(min=SMALLEST_SCALE)


class IntegerLayer(NamedTuple):
    """Weights and bias of a layer as integers.

    Attributes:
        weight: int8, [O, …].
        scale: of the weights of each output channel, [O].
        bias: int32, [O], or None.
        unit: of the bias, [O].
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    unit: Tensor


def integers(weight: Tensor, bias: Tensor | None, input_scale: Tensor) -> IntegerLayer:
    """Return what weights [O, …] and bias [O] are rounded to; see `FakeQuantizer.weights`."""
    scale = weight_scale(weight, bias, input_scale)
    steps = weight / scale.view(-1, *[1] * (weight.ndim - 1))
    stored = steps.round().clamp(-HIGHEST, HIGHEST).to(torch.int8)
    unit = scale * input_scale
    return IntegerLayer(
        stored, scale, None if bias is None else (bias / unit).round().to(torch.int32), unit
    )


def fold(
    weight: Tensor, bias: Tensor | None, norm: Folded, tensors: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return weights [O, …] and bias [O] of a layer that also does the batch normalisation after it.

    Args:
        weight: of the layer.
        bias: of the layer, or None.
        norm: the batch normalisation, with its running statistics.
        tensors: of the network, by name.
    """
    factor = (tensors[norm.variance] + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = tensors[norm.weight] * factor
    mean = tensors[norm.mean]
    shift = (-mean if bias is None else bias - mean) * factor
    if norm.bias is not None:
        shift = tensors[norm.bias] + shift
    return weight * factor.view(-1, *[1] * (weight.ndim - 1)), shift


def other_operations() -> UserError:
    """Return the error of a network whose activations are not those that it had at first."""
    return UserError(
        "quantize: the network computes other operations in training than in evaluation, or from input "
        "to input, so that its activations have no ranges of their own: leave quantize.* out"
    )


class FakeQuantizer(nn.Module):
    """The fake quantisation of a network: which layers, and the ranges of activations.

    In training, ranges are moving averages of the smallest and largest value of a batch over all
    processes; the first batch sets them.

    Args:
        layers: the quantised layers by name, with the batch normalisation that is folded into each.
        keep_float: the layers that were asked to stay in float32.
        activations: number of quantised activations.

    Attributes:
        ranges: (lowest, highest) of each activation, [activations, 2].
        largest: replaces a tensor by its elementwise maximum over all processes, and returns it.
    """

    ranges: Tensor

    def __init__(
        self,
        layers: dict[str, Folded | None],
        keep_float: Sequence[str],
        activations: int,
    ) -> None:
        super().__init__()
        self.layers, self.keep_float = layers, tuple(keep_float)
        self.register_buffer("ranges", torch.zeros(activations, 2))
        self.largest: Callable[[Tensor], Tensor] = lambda values: values

    def forward(self, x: Tensor) -> Tensor:
        """Return x: as a child of nn.Sequential, it is the last module."""
        return x

    def activation(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return x as it is quantised, and its scale; in training, its range follows x.

        Args:
            x: any shape; a process may hold no rows of a batch.
            number: of the activation, in the order of the forward pass.

        Raises:
            UserError: there is no such activation.
        """
        if number >= len(self.ranges):
            raise other_operations()
        if self.training:
            self._observe(x.detach(), number)
        scale, zero_point = activation_scale(self.ranges[number])
        quantised = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, LOWEST, HIGHEST)
        return quantised, scale

    @torch.no_grad()
    def _observe(self, x: Tensor, number: int) -> None:
        found = x.new_zeros(2)
        if x.numel():
            found = torch.stack((-x.amin(), x.amax())).clamp(min=0)
        low, high = self.largest(found).unbind()
        seen = torch.stack((-low, high))
        mine = self.ranges[number]
        mine.copy_(torch.where((mine == 0).all(), seen, mine.lerp(seen, MOMENTUM)))

    def again(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return values of a quantised activation that were only moved or selected, and its scale."""
        return x, activation_scale(self.ranges[number])[0]

    def weights(
        self, layer: str, weight: Tensor, bias: Tensor | None, input_scale: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return weights [O, …] and bias [O] of a layer as they are quantised.

        Args:
            layer: its name.
            weight: with batch normalisation folded into it.
            bias: likewise, or None.
            input_scale: of the layer's input.
        """
        with torch.no_grad():
            scale = weight_scale(weight, bias, input_scale)
            zeros = torch.zeros_like(scale, dtype=torch.int32)
        quantised = torch.fake_quantize_per_channel_affine(
            weight, scale, zeros, 0, -HIGHEST, HIGHEST
        )
        if bias is not None:
            unit = scale * input_scale
            bias = bias + ((bias / unit).round() * unit - bias).detach()
        return quantised, bias
