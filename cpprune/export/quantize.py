"""Weights of an exported network in fewer bits: float16 as stored, or int8 after calibration."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from cpprune.export.complexity import weights
from cpprune.export.file_model import first_line
from shards.errors import UserError
from shards.suggest import did_you_mean

BATCH = 16
INT8_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # that int8 takes
FIRST, LAST = "first", "last"  # layers by their place


def store_fp16(network: onnx.ModelProto) -> onnx.ModelProto:
    """Return a network whose weights are stored as float16 and cast to float32 when they are loaded.

    It computes in float32, which every runtime can, and half of the bytes are saved. Weights beyond the
    range of float16 (65,504) become its largest number.

    Args:
        network: features → logits, float32; it is not changed.
    """
    stored = onnx.ModelProto()
    stored.CopyFrom(network)
    halved, casts = weights(network), []
    for constant in stored.graph.initializer:
        if constant.name not in halved or constant.data_type != onnx.TensorProto.FLOAT:
            continue
        name, half = constant.name, f"{constant.name}.fp16"
        most = np.finfo(np.float16).max
        values = numpy_helper.to_array(constant).clip(-most, most).astype(np.float16)
        constant.CopyFrom(numpy_helper.from_array(values, half))
        casts.append(helper.make_node("Cast", [half], [name], name=half, to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *stored.graph.node]
    del stored.graph.node[:]
    stored.graph.node.extend(nodes)
    return stored


def quantize_int8(
    network: onnx.ModelProto,
    inputs: NDArray[np.float32],
    keep_float: Sequence[str] = (FIRST,),
    *,
    integer: bool = False,
    only: str | None = None,
    ranges: Path | None = None,
) -> onnx.ModelProto:
    """Return a network quantised to int8: weights by output channel, activations by tensor.

    The graph has QuantizeLinear and DequantizeLinear around each operator (QDQ). An activation's
    range is from the smallest to the largest value that it takes for the inputs.

    Args:
        network: features → logits, float32, batch normalisation folded; it is not changed.
        inputs: of the network, to calibrate with.
        keep_float: names of layers that stay in float32; also `first` and `last`. Keeping the first
            pays: it is small, and spectrograms have a wide range (benchmarks/shipping.py).
        integer: whether the operators themselves take integers (QLinearConv), some of which are not in
            the ONNX standard, instead.
        only: name of the one operator that is quantised; None for all.
        ranges: file with the ranges of an earlier call for this network and these inputs; written if it
            is missing.

    Raises:
        UserError: there is no layer of such a name, or the network cannot be quantised.
    """
    kept = layers_kept(network, keep_float)
    twin = onnx.ModelProto()
    twin.CopyFrom(network)
    _unshare(twin, 2 if integer else 1)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "quantized.onnx"
        quantize_static(
            twin,
            target,
            _Batches(inputs),
            quant_format=QuantFormat.QOperator if integer else QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_quantize=None if only is None else [only],
            nodes_to_exclude=kept,
            calibration_cache_path=ranges,
        )
        quantized = onnx.load(target)
    quantized.producer_name, quantized.producer_version = "cpprune", ""
    del quantized.metadata_props[:]
    del quantized.graph.value_info[:]
    return quantized


def _unshare(network: onnx.ModelProto, first: int) -> None:
    """Give every layer weights of its own: biases are quantised by the scale of the layer's input.

    Args:
        network: which is changed.
        first: of each layer's inputs that have to be its own.
    """
    constants = {constant.name: constant for constant in network.graph.initializer}
    taken: set[str] = set()
    for number, node in enumerate(network.graph.node):
        names = node.input[first:] if node.op_type in INT8_LAYERS else ()
        for place, name in enumerate(names, first):
            if name in taken:
                own = network.graph.initializer.add()
                own.CopyFrom(constants[name])
                own.name = node.input[place] = f"{name}_{number}"
            elif name in constants:
                taken.add(name)


def int8_layers(network: onnx.ModelProto) -> list[str]:
    """Return the names of the layers that int8 takes, in the network's order."""
    return [node.name for node in network.graph.node if node.op_type in INT8_LAYERS]


def layers_kept(network: onnx.ModelProto, keep_float: Sequence[str]) -> list[str]:
    """Return the names of layers that stay in float32; `first` and `last` become those of the layers.

    Raises:
        UserError: there is no layer of such a name, or none at all that int8 takes.
    """
    layers = int8_layers(network)
    if not layers:
        raise UserError(
            "the network has no convolution, linear layer or product of matrices, which int8 is for: "
            "export it in fp32"
        )
    names = {name: name for name in layers} | {FIRST: layers[0], LAST: layers[-1]}
    for name in keep_float:
        if name not in names:
            hint = did_you_mean(name, names)
            raise UserError(
                f"--keep-float {name}: no such layer: choose none, or of {', '.join(names)}{hint}"
            )
    return [names[name] for name in keep_float]


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Batches of the calibration inputs, as onnxruntime asks for them."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self.batches = iter([inputs[k : k + BATCH] for k in range(0, len(inputs), BATCH)])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, or None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"features": batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context in which the quantiser neither prints nor warns of steps that were done here before.

    What it raises is a UserError.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Exception as error:  # it documents no common class
        reason = first_line(error)
        raise UserError(f"the network cannot be quantised: {reason}; export it in fp32") from error
    finally:
        logging.disable(before)
