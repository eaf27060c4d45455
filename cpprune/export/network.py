"""The network as an ONNX model: features → logits, its batch normalisation folded into convolutions."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence

import onnx
import torch
from torch import nn

from cpprune.export.agreement import FLOATS, agree
from cpprune.export.onnx_session import open_session
from cpprune.models.example import example_input
from shards.errors import UserError

OPSET = 20
IR_VERSION = 10  # of the file: what onnxruntime 1.18 and later read


def export_network(network: nn.Module, input_shape: Sequence[int]) -> onnx.ModelProto:
    """Return a network as an ONNX model: `features` [B, *input_shape] → `logits` [B, K].

    Nothing in it tells of this machine: what the exporter notes about source files is removed. An
    operator with weights has the name of its layer.

    Args:
        network: any module; it is not changed.
        input_shape: shape of one input, without the batch.

    Raises:
        UserError: the network has an operator that cannot be exported, or fixes the size of the batch.
    """
    twin = copy.deepcopy(network).float().cpu().eval()
    model = trace(twin, input_shape)
    check_outputs(model, twin, input_shape)
    return model


def trace(twin: nn.Module, input_shape: Sequence[int]) -> onnx.ModelProto:
    """Return what `export_network` does, unchecked.

    Args:
        twin: a float32 network on the CPU, in evaluation mode.
        input_shape: shape of one input, without the batch.

    Raises:
        UserError: the network has an operator that cannot be exported.
    """
    example = example_input(twin, input_shape).expand(2, *input_shape).contiguous()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            program = torch.onnx.export(
                twin,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                external_data=False,
                input_names=["features"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # torch documents no common class
        raise UserError(f"the network cannot be exported to ONNX: {_reason(error)}") from error
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    _tidy(model)
    return model


def check_outputs(
    model: onnx.ModelProto, network: nn.Module, input_shape: Sequence[int], part: float = FLOATS
) -> None:
    """Raise UserError unless onnxruntime gives the network's outputs, for batches of any size.

    An exporter that traces a network may keep what was true of the example alone.

    Args:
        model: the network in ONNX.
        network: on the CPU, in evaluation mode.
        input_shape: shape of one input, without the batch.
        part: of the largest output, by which outputs may differ.
    """
    session = open_session(model)
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 3):
        x = torch.randn(batch, *input_shape, generator=generator)
        try:
            with torch.no_grad():
                expected = network(x).numpy()
            (found,) = session.run(None, {"features": x.numpy()})
        except Exception as error:  # the user's network may raise anything
            raise UserError(
                "the network cannot be exported to ONNX: it does not take batches of any size"
            ) from error
        if not agree(found, expected, part):
            raise UserError(
                "the network cannot be exported to ONNX: the exported one gives other outputs"
            )


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost error's message, where torch says what went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0][:200]}" if lines else type(error).__name__


def _tidy(model: onnx.ModelProto) -> None:
    """Remove what tells of source files, and name operators after their layers."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "cpprune", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name = "model"
    weights = {constant.name for constant in graph.initializer}
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        layers = [name for name in node.input if name in weights and name.endswith(".weight")]
        layer = layers[0].removesuffix(".weight") if layers else node.op_type
        # A layer may take several operators, one after the other.
        node.name = layer if layers and layer not in taken else f"{layer}_{number}"
        taken.add(layer)
        _count_no_padding(node)
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
    graph.doc_string = model.doc_string = ""


def _count_no_padding(node: onnx.NodeProto) -> None:
    """Let an average pool without padding count none: the one for integers counts what is cut off."""
    options = {option.name: option for option in node.attribute}
    if node.op_type == "AveragePool" and not any(options["pads"].ints):
        options["count_include_pad"].i = 0
