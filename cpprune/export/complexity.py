"""Complexity of a network as it is in an ONNX file: parameters, MACs and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set

import numpy as np
import onnx

from cpprune.evaluation import dcase
from cpprune.export.frontend import PREFIX
from cpprune.export.onnx_session import open_session

RECURRENT = ("GRU", "LSTM", "RNN")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)
# Between a stored weight and the layer that uses it, or a product of matrices and its bias.
BETWEEN = ("QuantizeLinear", "DequantizeLinear", "Cast", "Transpose")


def onnx_complexity(model: onnx.ModelProto, size: int) -> dcase.Complexity:
    """Return parameters, macs, operations, bytes and DCASE's limits, JSON-ready.

    Parameters are the weights and biases of the network's convolutions, matrix products and recurrent
    layers, into which batch normalisation is folded, each once however often it is used. MACs are those
    of one clip; the front end is not counted. Bytes are those of the network's constants (scales and
    zero points too), of the front end's, of the file.

    Args:
        model: contents of the file.
        size: of the file in bytes.
    """
    layers = [node for node in _network_of(model) if node.op_type in LAYERS]
    shapes = _shapes(model, {name for node in layers for name in (*node.input, node.output[0])})
    parameters = sum(math.prod(shape) for shape in weights(model).values())
    macs = sum(_products(node, shapes) for node in layers)
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


def weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights and biases of the network's layers, by the names of constants."""
    constants = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}

    def origin(name: str) -> str:
        while name in made and made[name].op_type in BETWEEN:
            name = made[name].input[0]
        return name

    found = {}
    for node in _network_of(model):
        names = [origin(name) for name in node.input[:4]]  # then follow states of recurrent layers
        stored = {name: constants[name] for name in names if name in constants}
        if node.op_type in LAYERS:
            found.update(stored)
        elif node.op_type == "Add":  # of a bias, which MatMul does not take
            products = [made[name] for name in names if name in made]
            if any(product.op_type == "MatMul" for product in products):
                found.update({name: shape for name, shape in stored.items() if len(shape) == 1})
    return found


def _network_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the operators of the network, without the front end's."""
    return [node for node in model.graph.node if not node.name.startswith(PREFIX)]


def _products(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the products of numbers that a layer takes, for values of these shapes."""
    x, weight = (shapes[name] for name in node.input[:2])
    outputs = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return outputs * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(x) * math.prod(weight[1:])
    if node.op_type in RECURRENT:  # x: steps, batch, inputs
        return math.prod(x[:2]) * sum(math.prod(shapes[name]) for name in node.input[1:3])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return outputs * x[-2 if transposed else -1]


def _shapes(model: onnx.ModelProto, names: Set[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of these values for one clip: those that they have when it is computed."""
    one = onnx.ModelProto()
    one.CopyFrom(model)
    made = sorted(names & {name for node in model.graph.node for name in node.output})
    del one.graph.output[:]
    one.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    given = one.graph.input[0]
    tensor = given.type.tensor_type
    clip = np.zeros(
        (1, *(dim.dim_value for dim in tensor.shape.dim[1:])),
        onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type),
    )
    found = open_session(one, as_written=True).run(made, {given.name: clip}) if made else []
    return {
        given.name: clip.shape,
        **{constant.name: tuple(constant.dims) for constant in model.graph.initializer},
        **{name: value.shape for name, value in zip(made, found, strict=True)},
    }


def _bytes(constants: list[onnx.TensorProto]) -> int:
    return sum(onnx.numpy_helper.to_array(constant).nbytes for constant in constants)
