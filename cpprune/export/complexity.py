"""Complexity of a network as it is in an ONNX file: parameters, MACs and bytes."""

from __future__ import annotations

import math

import onnx

from cpprune.evaluation import dcase
from cpprune.export.frontend import PREFIX

LAYERS = ("Conv", "Gemm", "MatMul")
FROM_STORED = ("DequantizeLinear", "Cast")  # between a stored weight and the layer that uses it


def onnx_complexity(model: onnx.ModelProto, size: int) -> dcase.Complexity:
    """Return parameters, macs, operations, bytes and DCASE's limits, JSON-ready.

    Parameters are the weights and biases of the network's convolutions and matrix products, into which
    batch normalisation is folded, and MACs are those of one clip; the front end is not counted. Bytes
    are those of the network's constants (scales and zero points too), of the front end's, of the file.

    Args:
        model: contents of the file.
        size: of the file in bytes.
    """
    parameters = macs = 0
    constants = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    sources = {
        node.output[0]: node.input[0] for node in model.graph.node if node.op_type in FROM_STORED
    }
    shapes = _shapes(model)
    for node in model.graph.node:
        if node.op_type not in LAYERS or node.name.startswith(PREFIX):
            continue
        stored = [constants.get(sources.get(name, name)) for name in node.input]
        numbers = [math.prod(shape) for shape in stored if shape is not None]
        parameters += sum(numbers)
        outputs = math.prod(shapes.get(node.output[0], ()))
        macs += outputs * _products(node, stored[1] or shapes.get(node.input[1], (1, 1)))
    network = [c for c in model.graph.initializer if not c.name.startswith(PREFIX)]
    front_end = [c for c in model.graph.initializer if c.name.startswith(PREFIX)]
    total = _bytes(network)
    return {
        "parameters": parameters,
        "macs": macs,
        "operations": macs,  # here, MACs are those of operators
        "bytes": {"network": total, "front_end": _bytes(front_end), "file": size},
        "limits": dcase.limits(macs, {"network": total}),
    }


def _products(node: onnx.NodeProto, weight: tuple[int, ...]) -> int:
    """Return the products that one output value of a layer takes, for a weight of this shape."""
    if node.op_type == "Conv":
        return math.prod(weight[1:])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return weight[-1] if transposed else weight[-2]


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every value for a batch of one clip, as far as it is known."""
    one = onnx.ModelProto()
    one.CopyFrom(model)
    one.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del one.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(one, data_prop=True)
    return {
        value.name: tuple(max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }


def _bytes(constants: list[onnx.TensorProto]) -> int:
    return sum(onnx.numpy_helper.to_array(constant).nbytes for constant in constants)
