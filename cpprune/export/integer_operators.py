"""Graphs whose operators take integers, of graphs with QuantizeLinear and DequantizeLinear (QDQ).

An operator between DequantizeLinear and QuantizeLinear becomes one that computes with integers:
QLinearConv of the ONNX standard, QLinearAdd and QLinearConcat of onnxruntime. What has no such
counterpart stays.
"""

from __future__ import annotations

import onnx
from onnx import helper

DOMAIN = "com.microsoft"
MOVES = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice")


def with_integer_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph in QDQ form with operators that take integers where there are any.

    Args:
        model: from `cpprune.export.qdq`; it is not changed.
    """
    integer = onnx.ModelProto()
    integer.CopyFrom(model)
    graph = integer.graph
    made = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    gone: set[str] = set()  # outputs of what was merged into another operator
    for node in graph.node:
        sources = [made.get(name) for name in node.input]
        dequantized = [s for s in sources if s is not None and s.op_type == "DequantizeLinear"]
        after = users.get(node.output[0], [])
        quantizer = after[0] if len(after) == 1 and after[0].op_type == "QuantizeLinear" else None
        merged = quantizer and _merged(node, dequantized, quantizer)
        if quantizer and merged:
            gone.update(quantizer.output)
            nodes.append(merged)
        elif node.output[0] not in gone:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(_needed(nodes, {value.name for value in graph.output}))
    if any(node.domain == DOMAIN for node in graph.node):
        integer.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return integer


def _merged(
    node: onnx.NodeProto, dequantized: list[onnx.NodeProto], quantizer: onnx.NodeProto
) -> onnx.NodeProto | None:
    """Return an operator that takes and gives integers, or None if there is none."""
    scale = list(quantizer.input[1:])
    outputs = list(quantizer.output)
    if node.op_type == "Conv" and len(dequantized) == len(node.input):
        x, weight, *bias = dequantized
        inputs = [*x.input, *weight.input, *scale, *(b.input[0] for b in bias)]
        merged = helper.make_node("QLinearConv", inputs, outputs, name=node.name)
    elif node.op_type == "Add" and len(dequantized) == 2:
        inputs = [*dequantized[0].input, *dequantized[1].input, *scale]
        return helper.make_node("QLinearAdd", inputs, outputs, name=node.name, domain=DOMAIN)
    elif node.op_type == "Concat" and len(dequantized) == len(node.input):
        inputs = [*scale, *(name for part in dequantized for name in part.input)]
        merged = helper.make_node("QLinearConcat", inputs, outputs, name=node.name, domain=DOMAIN)
    elif node.op_type == "DequantizeLinear" and list(node.input[1:]) == scale:
        return helper.make_node("Identity", node.input[:1], outputs, name=node.name)
    elif node.op_type in MOVES and dequantized and list(dequantized[0].input[1:]) == scale:
        inputs = [dequantized[0].input[0], *node.input[1:]]
        merged = helper.make_node(node.op_type, inputs, outputs, name=node.name)
    else:
        return None
    merged.attribute.extend(node.attribute)
    return merged


def _needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes, in order, whose results are needed for these outputs."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
