"""Complexity of a network as it is in a TensorFlow Lite graph: parameters, MACs and bytes."""

from __future__ import annotations

import math
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from cpprune.evaluation import dcase
from cpprune.export.tflite.graph import FRONT_END, read

# Layers → dimensions of their weights that one output value takes; of TRANSPOSE_CONV, an input value.
LAYERS = {
    schema.BuiltinOperator.CONV_2D: (1, 2, 3),
    schema.BuiltinOperator.DEPTHWISE_CONV_2D: (1, 2),
    schema.BuiltinOperator.FULLY_CONNECTED: (1,),
    schema.BuiltinOperator.TRANSPOSE_CONV: (0, 1, 2),
}


def tflite_complexity(graph: bytes, size: int) -> dcase.Complexity:
    """Return parameters, macs, operations, bytes and DCASE's limits, JSON-ready; see `onnx_complexity`.

    Args:
        graph: the flatbuffer.
        size: of the file in bytes.
    """
    model = read(graph)
    (subgraph,) = model.subgraphs
    macs = 0
    weights: dict[int, int] = {}  # sizes by buffer
    used: dict[bool, set[int]] = {True: set(), False: set()}  # tensors, by whether of the front end
    for operator in subgraph.operators:
        output = subgraph.tensors[operator.outputs[0]]
        of_front_end = output.name.startswith(FRONT_END.encode())
        inputs = [number for number in operator.inputs if number >= 0]
        used[of_front_end].update((*inputs, *operator.outputs))
        kind = model.operatorCodes[operator.opcodeIndex].builtinCode
        if of_front_end or kind not in LAYERS:
            continue
        _, weight, *others = (subgraph.tensors[number] for number in inputs)
        for tensor in (weight, *others):
            if model.buffers[tensor.buffer].data is not None:
                weights[tensor.buffer] = _size(tensor)
        transposed = kind == schema.BuiltinOperator.TRANSPOSE_CONV
        values = _size(others[0] if transposed else output)
        macs += values * math.prod(int(weight.shape[axis]) for axis in LAYERS[kind])
    network = _bytes(model, used[False])
    sizes = {
        "network": network,
        "front_end": _bytes(model, used[True] - used[False]),
        "file": size,
    }
    return {
        "parameters": sum(weights.values()),
        "macs": macs,
        "operations": macs,  # as in ONNX
        "bytes": sizes,
        "limits": dcase.limits(macs, {"network": network}),
    }


def _size(tensor: Any) -> int:
    return math.prod(map(int, tensor.shape))


def _bytes(model: Any, numbers: set[int]) -> int:
    """Return the bytes of tensors' constants, scales and zero points."""
    tensors = [model.subgraphs[0].tensors[number] for number in numbers]
    stored = [model.buffers[number].data for number in {tensor.buffer for tensor in tensors}]
    scales = [tensor.quantization for tensor in tensors if tensor.quantization is not None]
    numbers_of = [(q.scale, 4) for q in scales] + [(q.zeroPoint, 8) for q in scales]
    return sum(len(data) for data in stored if data is not None) + sum(
        size * len(values) for values, size in numbers_of if values is not None
    )
