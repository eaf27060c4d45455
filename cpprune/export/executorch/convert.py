"""A model as an ExecuTorch program: front end and network, lowered to XNNPACK."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cpprune.evaluation import dcase
from cpprune.evaluation.operations import count_operations
from cpprune.export.agreement import INTEGERS, agree
from cpprune.export.buffer_name import buffer_name
from cpprune.export.executorch.model import Costs, Sizes
from cpprune.export.executorch.runtime import Program
from cpprune.export.file_model import first_line
from cpprune.export.inputs import model_input
from cpprune.export.lowered import OPERATORS, SCALE, ZERO_POINT, Integers, Lowered, round_for
from cpprune.export.quiet import quiet
from cpprune.export.real_frontend import real_front_end
from cpprune.export.target import Job
from cpprune.models.quantized import calibrate, is_quantized, quantize
from shards.errors import UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node

BATCH = 16
FLOATS = 1e-4  # of the largest logit
# How the names of tensors begin.
FRONT_END, NETWORK, QUANTIZED = "front_end.", "network.", "network.integers."
WITH_WEIGHTS = (
    torch.ops.aten.linear.default,
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
)
ACTIVATIONS = (torch.ops.aten.relu.default, torch.ops.aten.hardtanh.default)
RESHAPES = (
    torch.ops.aten.flatten.using_ints,
    torch.ops.aten.reshape.default,
    torch.ops.aten.view.default,
)


class WholeModel(nn.Module):
    """From what the file takes to the logits.

    Args:
        job: what is exported.
        network: its network, in the precision that is wanted.
    """

    def __init__(self, job: Job, network: nn.Module) -> None:
        super().__init__()
        self.front_end = real_front_end(job.model, job.input)
        self.network = Lowered(network, job.model.input_shape)

    def forward(self, x: Tensor) -> Tensor:
        """One clip, in the form that the file takes → logits [1, K]."""
        logits: Tensor = self.network(self.front_end(x))
        return logits


def convert(job: Job) -> tuple[bytes, Costs]:
    """Return the program of a model, and what it costs; the batch is one clip.

    Raises:
        UserError: the network cannot be converted, or the converted one gives other logits.
    """
    network = _in_precision(job)
    clips = model_input(job.clips, job.input, job.model.features)
    with _failures(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        example = (torch.from_numpy(clips[:1]),)
        whole = WholeModel(job, network).eval()
        exported = torch.export.export(whole, example)
        integers = whole.network.integers
        if integers and (alone := _layers_alone(exported, integers)):
            for layer in alone:
                integers.keep_float(layer)
            exported = torch.export.export(whole, example)
        tensors = _used(exported)
        _without_identities(exported.graph)
        _one_scale_for_reshapes(exported.graph)
        _one_scale_for_concatenation(exported.graph)
        _duplicate_dequantisation(exported.graph)
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        program: bytes = edge.to_executorch().buffer
        found = Program(program)(clips)
        expected = network(job.model.features(job.clips)).numpy()
    if not agree(found, expected, INTEGERS if job.precision == "int8" else FLOATS):
        raise UserError(
            "the network cannot be exported to ExecuTorch: the exported one gives other logits"
        )
    operations = count_operations(job.model.network, job.model.input_shape)
    cost: dcase.Cost = {
        "parameters": sum(
            tensor.numel()
            for name, tensor in tensors.items()
            if name.startswith(NETWORK) and not _holds(name, SCALE, ZERO_POINT)
        ),
        "macs": operations,  # as in ONNX
        "operations": operations,
    }
    sizes: Sizes = {
        "network": _bytes(tensors, NETWORK),
        "front_end": _bytes(tensors, FRONT_END),
    }
    return program, Costs(cost, sizes)


def _in_precision(job: Job) -> nn.Module:
    """Return the network, fake-quantised if that is wanted, on the CPU in evaluation mode."""
    if job.precision == "fp32" or is_quantized(job.model.network):
        return job.model.network
    network = copy.deepcopy(job.model.network).float().eval()
    quantize(network, job.model.input_shape, job.keep_float, "--keep-float ")
    assert is_quantized(network)
    assert job.calibration is not None
    calibrate(network, map(job.model.features, torch.split(job.calibration, BATCH)))
    return network


def _used(program: ExportedProgram) -> dict[str, Tensor]:
    """Return the parameters and buffers that a program uses, by their names in the module."""
    program.graph.eliminate_dead_code()  # weights as they were before folding
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {target: program.state_dict[target] for name, target in names.items() if name in used}


def _layers_alone(program: ExportedProgram, integers: Integers) -> list[str]:
    """Return the layers with integer weights whose output is not quantised, such as logits.

    XNNPACK runs no such convolution, and takes linear layers for some that quantise their input anew for
    each clip, which gives other logits.
    """
    layers = {buffer_name(layer, "weight"): layer for layer in integers.layers}
    buffers = program.graph_signature.inputs_to_buffers
    return [
        layers[buffers[weight.args[0].name].removeprefix(QUANTIZED)]
        for node in program.graph.nodes
        if node.target in WITH_WEIGHTS
        for weight in node.args[1:2]
        if weight.target is OPERATORS.dequantize_per_channel.default
        and not any(_quantisations(node))
    ]


def _quantisations(node: Node) -> Iterator[Node]:
    """Yield what quantises a node's output, or that of an activation which XNNPACK computes with it."""
    for user in node.users:
        if user.target is OPERATORS.quantize_per_tensor.default:
            yield user
        elif user.target in ACTIVATIONS:
            yield from _quantisations(user)


def _without_identities(graph: Graph) -> None:
    """Leave out what returns its input: XNNPACK computes a layer with the activation next to it."""
    for node in list(graph.nodes):
        same = node.target is torch.ops.aten.view_as.default and node.args[0] is node.args[1]
        if same or node.target is torch.ops.aten.dropout.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _one_scale_for_reshapes(graph: Graph) -> None:
    """Quantise what is only reshaped as it was before: XNNPACK knows no reshape to another scale."""
    for node in list(graph.nodes):
        if node.target in RESHAPES:
            before = node.args[0]
            others = [
                user
                for user in node.users
                if user.target is not OPERATORS.quantize_per_tensor.default
                or user.args[1:] != before.args[1:]
            ]
            if before.target is OPERATORS.dequantize_per_tensor.default and others:
                round_for(others, node, before.args[1:])


def _one_scale_for_concatenation(graph: Graph) -> None:
    """Quantise parts as their concatenation will be: XNNPACK runs no other in integers."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.cat.default:
            quantisations = list(_quantisations(node))
            for part in node.args[0] if len(quantisations) == 1 else ():
                round_for([node], part, quantisations[0].args[1:])


def _duplicate_dequantisation(graph: Graph) -> None:
    """Give each operator its own conversion of what it takes, as XNNPACK looks for them beside it."""
    for node in list(graph.nodes):
        if node.target is OPERATORS.dequantize_per_tensor.default:
            for user in list(node.users)[1:]:
                with graph.inserting_before(user):
                    user.replace_input_with(node, graph.node_copy(node))


def _bytes(tensors: Mapping[str, Tensor], start: str) -> int:
    """Return the bytes of tensors whose names begin like this; zero points are not in the program."""
    return sum(
        tensor.nbytes
        for name, tensor in tensors.items()
        if name.startswith(start) and not _holds(name, ZERO_POINT)
    )


def _holds(name: str, *keys: str) -> bool:
    """Return whether a tensor of `WholeModel` is one of these of a quantised layer."""
    return name.startswith(QUANTIZED) and name.endswith(keys)


@contextmanager
def _failures() -> Iterator[None]:
    """Context in which the libraries are silent, and what they raise is the user's."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with quiet():
            yield
    except Exception as error:  # they document no common class
        raise UserError(
            f"the network cannot be exported to ExecuTorch: {first_line(error)}"
        ) from error
    finally:
        logging.disable(level)
