"""A fake-quantised network as an ONNX model: it rounds to the same numbers, held as integers.

The graph has QuantizeLinear and DequantizeLinear where the network rounds activations, with its own
scales and zero points, and its weights as int8 and biases as int32 (QDQ); biases of linear layers stay
float32.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from cpprune.export.agreement import INTEGERS
from cpprune.export.buffer_name import buffer_name
from cpprune.export.network import OPSET, check_outputs, trace
from cpprune.models.example import example_input
from cpprune.models.fake_quantize import (
    LOWEST,
    FakeQuantizer,
    Folded,
    activation_scale,
    integers,
)
from cpprune.models.quantized import QUANTIZER, is_quantized

QUANTIZE, DEQUANTIZE = "::QuantizeLinear", "::DequantizeLinear"


def export_quantized(network: nn.Module, input_shape: Sequence[int]) -> onnx.ModelProto:
    """Return a fake-quantised network as an ONNX model: `features` [B, *input_shape] → `logits` [B, K].

    Args:
        network: from `cpprune.models.quantized.quantize`; it is not changed.
        input_shape: shape of one input, without the batch.

    Raises:
        UserError: the network has an operator that cannot be exported, or fixes the size of the batch.
    """
    fake = copy.deepcopy(network).float().cpu().eval()
    assert is_quantized(fake)
    twin = copy.deepcopy(fake)
    integers = _Integers(fake.fake_quantize)
    setattr(twin, QUANTIZER, integers)
    with torch.no_grad():
        twin(example_input(twin, input_shape))
    integers.symbolic = True
    model = trace(twin, input_shape)
    _rename(model, integers.initializers)
    _unshare_zero_points(model)
    _drop_relu(model)
    check_outputs(model, fake, input_shape, INTEGERS)
    return model


class _Integers(nn.Module):
    """Takes the place of a `FakeQuantizer`: integers, and operators of ONNX that compute with them.

    A first pass stores the integers of every layer; then `symbolic` is set, and the network can be
    traced.

    Args:
        fake: of a trained network, in evaluation mode.

    Attributes:
        ranges: those of `fake`.
        symbolic: whether operators of ONNX take the place of fake quantisation.
        initializers: names in the ONNX file by the names of the buffers.
    """

    ranges: Tensor

    def __init__(self, fake: FakeQuantizer) -> None:
        super().__init__()
        self.fake = fake
        self.register_buffer("ranges", fake.ranges)
        self.symbolic = False
        self.initializers: dict[str, str] = {}

    @property
    def layers(self) -> dict[str, Folded | None]:
        """The quantised layers by name, with what is folded into each."""
        return self.fake.layers

    def forward(self, x: Tensor) -> Tensor:
        """Return x: as a child of nn.Sequential, it is the last module."""
        return x

    def activation(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return x as it is quantised, and its scale."""
        name = f"activation_{number}"
        if not self.symbolic:
            scale, zero_point = activation_scale(self.ranges[number])
            self._store(name, scale=scale, zero_point=zero_point.to(torch.int8))
            return self.fake.activation(x, number)
        scale, zero_point = self._stored(name, "scale", "zero_point")
        q = _operator(QUANTIZE, (x, scale, zero_point), x.shape, torch.int8)
        return _operator(DEQUANTIZE, (q, scale, zero_point), x.shape, torch.float32), scale

    def again(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return values of a quantised activation that were only moved or selected, and its scale.

        They are quantised once more, to the same numbers, so that a runtime finds integers before and
        after the operator that moved them.
        """
        return self.activation(x, number)

    def weights(
        self, layer: str, weight: Tensor, bias: Tensor | None, input_scale: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return weights and bias of a layer as they are quantised."""
        if not self.symbolic:
            self._store_layer(layer, weight, bias, input_scale)
            return self.fake.weights(layer, weight, bias, input_scale)
        shape, per_channel = weight.shape, {"axis": 0}
        stored = self._stored(layer, "weight", "weight_scale", "weight_zero_point")
        weight = _operator(DEQUANTIZE, stored, shape, torch.float32, per_channel)
        if bias is not None and len(shape) == 2:
            (bias,) = self._stored(layer, "bias")
        elif bias is not None:
            stored = self._stored(layer, "bias", "bias_scale", "bias_zero_point")
            bias = _operator(DEQUANTIZE, stored, shape[:1], torch.float32, per_channel)
        return weight, bias

    def _store_layer(
        self, layer: str, weight: Tensor, bias: Tensor | None, input_scale: Tensor
    ) -> None:
        made = integers(weight, bias, input_scale)
        self._store(
            layer,
            weight=made.weight,
            weight_scale=made.scale,
            weight_zero_point=torch.zeros_like(made.scale, dtype=torch.int8),
        )
        if made.bias is not None and weight.ndim == 2:
            # With an integer bias, onnxruntime computes linear layers by QGemm, whose results differ.
            self._store(layer, bias=made.bias * made.unit)
        elif made.bias is not None:
            self._store(
                layer,
                bias=made.bias,
                bias_scale=made.unit,
                bias_zero_point=torch.zeros_like(made.unit, dtype=torch.int32),
            )

    def _store(self, name: str, **tensors: Tensor) -> None:
        for key, tensor in tensors.items():
            own = buffer_name(name, key)
            self.register_buffer(own, tensor.contiguous())
            self.initializers[f"{QUANTIZER}.{own}"] = f"{name}.{key}"

    def _stored(self, name: str, *keys: str) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(buffer_name(name, key)) for key in keys)


def _operator(
    name: str,
    inputs: Sequence[Tensor],
    shape: Sequence[int | torch.SymInt],
    dtype: torch.dtype,
    attributes: dict[str, int] | None = None,
) -> Tensor:
    return torch.onnx.ops.symbolic(
        name, inputs, dict(attributes or {}), dtype=dtype, shape=shape, version=OPSET
    )


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give initializers the names of the layers that they belong to, and operators those of layers."""
    for constant in model.graph.initializer:
        constant.name = names.get(constant.name, constant.name)
    made = {}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        made[node.output[0]] = node
    taken: set[str] = set()
    for node in model.graph.node:
        sources = [made[name].input[0] for name in node.input if name in made]
        layers = [n.removesuffix(".weight") for n in sources if n.endswith(".weight")]
        if layers and node.op_type != "DequantizeLinear" and layers[0] not in taken:
            node.name = layers[0]
            taken.add(layers[0])


def _unshare_zero_points(model: onnx.ModelProto) -> None:
    """Give every layer's weights a zero point of their own; the exporter stores equal ones once.

    onnxruntime cannot open a file otherwise where its option keeps products from saturating.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or not node.input[0].endswith(".weight"):
            continue
        own = f"{node.input[0]}_zero_point"
        if node.input[2] != own and own not in constants:
            constants[own] = model.graph.initializer.add()
            constants[own].CopyFrom(constants[node.input[2]])
            constants[own].name = own
        node.input[2] = own


def _drop_relu(model: onnx.ModelProto) -> None:
    """Remove ReLU where the integers that follow cannot be below zero anyway.

    Then a runtime sees a layer and its quantised output side by side, and computes it with integers.
    """
    values = {c.name: c for c in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in [node for node in model.graph.node if node.op_type == "Relu"]:
        (given,), (made,) = node.input, node.output
        after = users.get(made, [])
        if after and all(
            user.op_type == "QuantizeLinear"
            and numpy_helper.to_array(values[user.input[2]]) == LOWEST
            for user in after
        ):
            for user in after:
                user.input[0] = given
            model.graph.node.remove(node)
