"""A model as the bytes of a TensorFlow Lite graph, by litert-torch and ai-edge-quantizer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cpprune.export.agreement import FLOATS, INTEGERS, agree
from cpprune.export.file_model import first_line
from cpprune.export.inputs import model_input
from cpprune.export.lowered import OPERATORS, Lowered, round_for
from cpprune.export.quiet import quiet
from cpprune.export.real_frontend import real_front_end
from cpprune.export.target import Job
from cpprune.export.tflite.graph import NETWORK, OUTPUT, renamed
from cpprune.export.tflite.runtime import Runtime
from cpprune.models.quantized import is_quantized
from shards.errors import UserError

SIGNATURE = "serving_default"
# TensorFlow Lite gives their input the scale of their output.
POOLS = torch.ops.aten.avg_pool1d.default, torch.ops.aten.avg_pool2d.default


class WholeModel(nn.Module):
    """From what the file takes to the logits, in real numbers.

    Args:
        job: what is exported.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        # litert-torch writes the names of these two into those of their values.
        self.front_end = real_front_end(job.model, job.input)
        self.network = Lowered(job.model.network, job.model.input_shape, int8_weights=False)

    def forward(self, x: Tensor) -> Tensor:
        """One clip, in the form that the file takes → logits [1, K]."""
        logits: Tensor = self.network(self.front_end(x))
        return logits


def convert(job: Job) -> bytes:
    """Return the graph of a model; the batch is one clip.

    Raises:
        UserError: the network cannot be converted, or the converted one gives other logits.
    """
    clips = model_input(job.clips, job.input, job.model.features)
    as_trained = is_quantized(job.model.network)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        import litert_torch

        target = Path(folder) / "model.tflite"
        whole, example = WholeModel(job).eval(), (torch.from_numpy(clips[:1]),)
        try:
            if as_trained:
                converted = _with_own_scales(whole, example)
            else:
                converted = litert_torch.convert(whole, example)
            converted.export(str(target))
        except Exception as error:  # it documents no common class
            raise UserError(
                f"the network cannot be exported to TensorFlow Lite: {first_line(error)}"
            ) from error
        graph = target.read_bytes()
    graph = renamed(graph, job.input, "_front_end", "_network")
    with torch.no_grad():
        expected = job.model.logits(job.clips).numpy()
    if not agree(Runtime(graph)(clips), expected, INTEGERS if as_trained else FLOATS):
        raise UserError(
            "the network cannot be exported to TensorFlow Lite: the exported one gives other logits"
        )
    return graph if as_trained or job.precision != "int8" else _quantized(graph, job)


def _with_own_scales(whole: WholeModel, example: tuple[Tensor]) -> Any:
    """Return a fake-quantised model as litert-torch converts it, with its own scales."""
    import litert_torch
    from litert_torch.quantize import pt2e_quantizer, quant_config

    program = torch.export.export(whole, example)
    program.graph.eliminate_dead_code()
    for node in list(program.graph.nodes):
        dequantize = OPERATORS.dequantize_per_tensor.default
        if node.target in POOLS and node.args[0].target is dequantize:
            round_for(list(node.users), node, node.args[0].args[1:])
    # Which quantizer it is makes no difference: the program says what is quantised.
    static = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = pt2e_quantizer.PT2EQuantizer().set_global(static)
    return litert_torch.convert(
        program.module(), example, quant_config=quant_config.QuantConfig(quantizer)
    )


def _quantized(graph: bytes, job: Job) -> bytes:
    """Return a graph with its network in int8: weights by output channel, activations by tensor.

    The front end stays as it is. Where there is none, input and output are int8 too.
    """
    with quiet():
        from ai_edge_quantizer import quantizer
        from ai_edge_quantizer.qtyping import TFLOperationName

        tool = quantizer.Quantizer(bytearray(graph))
        bits = {"activation_num_bits": 8, "weight_num_bits": 8}
        if job.input == "features":
            tool.add_static_config(".*", TFLOperationName.ALL_SUPPORTED, **bits)
        else:
            network = f"^({NETWORK}|{OUTPUT})"
            tool.add_static_config(network, TFLOperationName.ALL_SUPPORTED, **bits)
            tool.update_quantization_recipe(
                OUTPUT, TFLOperationName.OUTPUT, algorithm_key="no_quantize"
            )
        assert job.calibration is not None
        inputs = model_input(job.calibration, job.input, job.model.features)
        samples = [{job.input: clip[None]} for clip in inputs]
        ranges = tool.calibrate({SIGNATURE: samples}, num_threads=1)
        return bytes(tool.quantize(ranges).quantized_model)
