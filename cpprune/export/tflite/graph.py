"""TensorFlow Lite graphs, read and written; names that say what is front end and what is network."""

from __future__ import annotations

from typing import Any

from ai_edge_litert.tools import flatbuffer_utils

FRONT_END, NETWORK = "front_end/", "network/"  # begin the names of operators' outputs
OUTPUT = "logits"


def read(graph: bytes) -> Any:
    """Return a graph as the object of the library's that has its contents."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(graph))


def renamed(graph: bytes, source: str, front_end: str, network: str) -> bytes:
    """Return a graph with short names; those that litert-torch gives take more bytes than weights do.

    The input is called `source` and the output `logits`, in the signature too.

    Args:
        graph: of one function with one input and one output.
        source: name of the input.
        front_end: what the names of the front end's values hold, and no others.
        network: what those of the network's values hold; fused operators may have both.
    """
    model = read(graph)
    (subgraph,), (signature,) = model.subgraphs, model.signatureDefs
    before = [tensor.name.decode() for tensor in subgraph.tensors]
    for number, tensor in enumerate(subgraph.tensors):
        tensor.name = str(number).encode()
    for operator in subgraph.operators:
        for number in operator.outputs:
            inside = front_end in before[number] and network not in before[number]
            subgraph.tensors[number].name = f"{FRONT_END if inside else NETWORK}{number}".encode()
    (given,), (made,) = subgraph.inputs, subgraph.outputs
    for number, tensors, name in (
        (given, signature.inputs, source),
        (made, signature.outputs, OUTPUT),
    ):
        subgraph.tensors[number].name = tensors[0].name = name.encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
