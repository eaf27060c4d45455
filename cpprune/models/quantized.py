"""Networks that compute as their int8 export will: fake quantisation of layers and activations.

Quantised are the weights, inputs and outputs of convolutions and linear layers, and the parts of
additions and concatenations, and their results. Batch normalisation is folded into the layer before it,
with its running statistics, which stay as they are; ReLU counts as part of what it follows. The outputs
of the network, and whatever else it computes, are float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from cpprune.deps.torch import AnyBatchNorm
from cpprune.models.example import example_input
from cpprune.models.fake_quantize import BITS, FakeQuantizer, Folded, other_operations
from cpprune.models.intercept import Intercept
from cpprune.models.quantizing import Quantizing, Tracing
from shards.errors import UserError
from shards.suggest import did_you_mean

QUANTIZER = "fake_quantize"  # the attribute of a network
RANGES = f"{QUANTIZER}.ranges"  # in its state dict
FIRST, LAST = "first", "last"  # layers by their place


class FakeQuantized(nn.Module):
    """What `quantize` puts before the class of a network; batch normalisation does not train."""

    fake_quantize: FakeQuantizer

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """x_BCFT → logits [B, K], in float32 whatever the precision around it."""
        quantizer = self.fake_quantize
        context = Quantizing(self, quantizer)
        with torch.autocast(x_BCFT.device.type, enabled=False), context:
            logits: Tensor = super().forward(x_BCFT.float())
        if context.activations != len(quantizer.ranges):
            raise other_operations()
        return logits

    def train(self, mode: bool = True) -> FakeQuantized:
        """Set training or evaluation mode; batch normalisation stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, AnyBatchNorm):
                module.training = False
        return self


@dataclass(frozen=True)
class _Unchanged:
    """Arithmetic that changes nothing, for a pass that counts activations."""

    layers: dict[str, Folded | None]

    def activation(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return another tensor of the same values, and any scale."""
        return x.clone(), x.new_ones(())

    def again(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return the same."""
        return self.activation(x, number)

    def weights(
        self, layer: str, weight: Tensor, bias: Tensor | None, input_scale: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return weights and bias."""
        return weight, bias


_kinds: dict[type[nn.Module], type[nn.Module]] = {}


def quantize(
    network: nn.Module,
    input_shape: Sequence[int],
    keep_float: Sequence[str] = (FIRST,),
    option: str = "quantize.keep_float=",
) -> FakeQuantizer:
    """Make a network compute with fake quantisation from now on, in place.

    Its parameters and their names stay; its state dict also holds the ranges of activations, which are
    not known before the first pass in training mode.

    Args:
        network: any module.
        input_shape: shape of one input, without the batch.
        keep_float: names of layers that stay in float32; also `first` and `last`.
        option: what a message writes before such a name.

    Raises:
        UserError: there is no layer of such a name, or none is left to quantise.
    """
    assert not is_quantized(network)
    found = traced(network, input_shape)
    kept = _named(keep_float, list(found.layers), option) | found.repeated
    layers = {name: norm for name, norm in found.layers.items() if name not in kept}
    if not layers:
        raise UserError(
            "quantize: the network has no convolution or linear layer that could be quantised"
        )
    passed = Quantizing(network, _Unchanged(layers))
    _forward(network, input_shape, passed)
    quantizer = FakeQuantizer(layers, keep_float, passed.activations)
    parameter = next(network.parameters())
    training = network.training
    network.add_module(QUANTIZER, quantizer.to(parameter.device))
    kind = type(network)
    if kind not in _kinds:
        _kinds[kind] = type(f"FakeQuantized{kind.__name__}", (FakeQuantized, kind), {})
    network.__class__ = _kinds[kind]
    network.train(training)
    return quantizer


def traced(network: nn.Module, input_shape: Sequence[int]) -> Tracing:
    """Return the layers of a network's forward pass, and what can be folded into each."""
    found = Tracing(network)
    _forward(network, input_shape, found)
    return found


@torch.no_grad()
def calibrate(network: FakeQuantized, batches: Iterable[Tensor]) -> None:
    """Set the ranges of activations to the smallest and largest values for these inputs, in place.

    Args:
        network: fake-quantised, in evaluation mode.
        batches: inputs [B, *input_shape].
    """
    quantizer = network.fake_quantize
    found = []
    quantizer.training = True
    for batch in batches:
        quantizer.ranges.zero_()  # the next batch sets them
        network(batch)
        found.append(quantizer.ranges.clone())
    quantizer.training = False
    low, high = torch.stack(found).unbind(-1)
    quantizer.ranges.copy_(torch.stack((low.amin(0), high.amax(0)), 1))


def dequantize(network: nn.Module) -> None:
    """Make a network compute in float32 again, in place."""
    assert is_quantized(network)
    delattr(network, QUANTIZER)
    kinds = {own: kind for kind, own in _kinds.items()}
    network.__class__ = kinds[type(network)]  # type: ignore[assignment]
    network.train(network.training)


@dataclass(frozen=True)
class Quantization:
    """The quantisation of a network, as `model.json` describes it; the ranges are with the weights."""

    bits: int
    keep_float: list[str]


def quantization_of(network: nn.Module) -> Quantization | None:
    """Return the quantisation of a network, or None if it computes in float32."""
    if not is_quantized(network):
        return None
    return Quantization(BITS, list(network.fake_quantize.keep_float))


def restore_quantized(
    network: nn.Module, input_shape: Sequence[int], quantization: Quantization, ranges: Tensor
) -> None:
    """Make a network compute with fake quantisation again, in place.

    Args:
        network: that was saved, in float32.
        input_shape: shape of one input, without the batch.
        quantization: of the network.
        ranges: of its activations, [activations, 2].

    Raises:
        ValueError: they are not of this network.
    """
    if quantization.bits != BITS:
        raise ValueError(f"quantization.bits is {quantization.bits}, this version knows {BITS}")
    try:
        own = quantize(network, input_shape, quantization.keep_float).ranges
    except UserError as error:
        raise ValueError(str(error)) from None
    if ranges.shape != own.shape or ranges.dtype != own.dtype:
        raise ValueError(f"{RANGES} is {list(ranges.shape)}, not {list(own.shape)} of float32")
    if not (ranges.isfinite().all() and (ranges[:, 0] <= 0).all() and (ranges[:, 1] >= 0).all()):
        raise ValueError(f"{RANGES} holds what is no range around 0")
    own.copy_(ranges)


def is_quantized(network: nn.Module) -> TypeGuard[FakeQuantized]:
    """Return whether a network computes with fake quantisation."""
    return isinstance(network, FakeQuantized)


def _named(keep_float: Sequence[str], layers: Sequence[str], option: str) -> set[str]:
    names = {name: name for name in layers}
    if layers:
        names |= {FIRST: layers[0], LAST: layers[-1]}
    for name in keep_float:
        if name not in names:
            hint = did_you_mean(name, names)
            raise UserError(f"{option}{name}: no such layer: choose of {', '.join(names)}{hint}")
    return {names[name] for name in keep_float}


@torch.no_grad()
def _forward(network: nn.Module, input_shape: Sequence[int], context: Intercept) -> None:
    with evaluating(network), context:
        network(example_input(network, input_shape))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context in which a network is in evaluation mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
