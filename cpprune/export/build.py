"""A model folder becomes the bytes of an ONNX file: front end, network and metadata."""

from __future__ import annotations

import onnx
from onnx import helper

from cpprune.export.frontend import front_end
from cpprune.export.metadata import Input, Precision, describe
from cpprune.export.sealed_onnx import seal
from cpprune.models.artifact import Model

TYPES = {
    "waveform": onnx.TensorProto.FLOAT,
    "int16": onnx.TensorProto.INT16,
    "image": onnx.TensorProto.UINT8,
}


def build_file(
    model: Model, network: onnx.ModelProto, kind: Input, precision: Precision, weights_sha256: str
) -> bytes:
    """Return the bytes of the ONNX file of a model.

    Args:
        model: the trained model.
        network: its network in ONNX, features → logits.
        kind: what the file takes.
        precision: of the network's weights.
        weights_sha256: of the model folder's weights.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(network)
    if kind != "features":
        _prepend_front_end(whole, model, kind)
    onnx.checker.check_model(whole, full_check=True)
    return seal(whole, describe(model, kind, precision, weights_sha256))


def _prepend_front_end(whole: onnx.ModelProto, model: Model, kind: Input) -> None:
    """Replace the input `features` by clips, and compute the features from them."""
    front, features = front_end(model.features.spec, model.clip_shape, kind, kind == "int16")
    graph = whole.graph
    for node in graph.node:
        node.input[:] = [features if name == "features" else name for name in node.input]
    nodes = [*front.nodes, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.initializer.extend(front.constants.values())
    shape: list[str | int | None] = ["batch", *model.clip_shape]
    graph.input.append(helper.make_tensor_value_info(kind, TYPES[kind], shape))
