"""Bytes of a network in an exported ONNX file, tensor by tensor, from its structure alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from cpprune.export.target import targets
from cpprune.models.quantized import dequantize, is_quantized

if TYPE_CHECKING:
    import onnx

    from cpprune.export.metadata import Precision

Shape = tuple[int, ...]


def exported_bytes(network: nn.Module, input_shape: Sequence[int], precision: Precision) -> int:
    """Return `bytes.network` of an ONNX file: weights, biases, scales, zero points and other constants.

    With int8, layers are in float32 as they are by default: the first one, or what the network was
    trained with. The front end is not counted.

    Args:
        network: any module, fake-quantised or not; it is not changed.
        input_shape: shape of one input, without the batch.
        precision: of the file.

    Raises:
        UserError: the network cannot be exported, or packages for it are not installed.
    """
    return sum(map(math.prod, stored_sizes(network, input_shape, precision).values()))


def stored_sizes(
    network: nn.Module, input_shape: Sequence[int], precision: Precision
) -> dict[str, Shape]:
    """Return (bytes of an entry, *shape) of each tensor that `exported_bytes` counts, by its name."""
    targets()["onnx"].require(f"the size of an export in {precision}")

    import onnx

    model = exported_graph(network, input_shape, precision)
    return {
        constant.name: (onnx.numpy_helper.to_array(constant).itemsize, *constant.dims)
        for constant in model.graph.initializer
    }


def exported_graph(
    network: nn.Module, input_shape: Sequence[int], precision: Precision
) -> onnx.ModelProto:
    """Return the network in ONNX, its int8 calibrated with noise."""
    from cpprune.export.qdq import export_quantized

    if is_quantized(network) and precision == "int8":
        return export_quantized(as_loaded(network), input_shape)
    return in_precision(traced(network, input_shape), input_shape, precision)


def traced(network: nn.Module, input_shape: Sequence[int]) -> onnx.ModelProto:
    """Return the network in ONNX, in float32."""
    from cpprune.export.network import trace

    twin = as_loaded(network)
    if is_quantized(twin):
        dequantize(twin)
    _make_distinct(twin, torch.Generator().manual_seed(0))
    return trace(twin, input_shape)


def in_precision(
    model: onnx.ModelProto,
    input_shape: Sequence[int],
    precision: Precision,
    *,
    integer: bool = False,
) -> onnx.ModelProto:
    """Return a network in ONNX in another precision, int8 calibrated with noise."""
    from cpprune.export.quantize import quantize_int8, store_fp16

    if precision == "fp16":
        return store_fp16(model)
    if precision == "int8":
        noise = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(1)).numpy()
        return quantize_int8(model, noise, integer=integer)
    return model


def as_loaded(network: nn.Module) -> nn.Module:
    """Return a copy as it is loaded from a model folder.

    In channels_last, the exporter would write other operators.
    """
    twin = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    return twin.float().cpu().eval()


@torch.no_grad()
def _make_distinct(network: nn.Module, generator: torch.Generator) -> None:
    """Change parameters until none are equal, since the exporter would store those once."""
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=1e-3)


def resized(
    stored: Mapping[str, Shape], before: Mapping[str, Shape], after: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Return the sizes of stored tensors when the network's tensors have other shapes.

    A stored tensor is named after the one that it was made from, and has its shape, or a number for each
    of its first dimension, such as a bias or scales; others keep their size.

    Args:
        stored: from `stored_sizes`.
        before: shapes in the network's state dict.
        after: those of the network with other widths.
    """
    found = {}
    for name, (width, *shape) in stored.items():
        origin = max((own for own in before if name.startswith(own)), key=len, default=None)
        if origin is not None:
            for axes in (len(before[origin]), 1):
                if shape == list(before[origin][:axes]):
                    shape = list(after[origin][:axes])
                    break
        found[name] = (width, *shape)
    return found
