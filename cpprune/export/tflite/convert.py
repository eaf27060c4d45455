"""A model as the bytes of a TensorFlow Lite graph, by litert-torch and ai-edge-quantizer."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cpprune.export.file_model import first_line
from cpprune.export.inputs import model_input
from cpprune.export.quiet import quiet
from cpprune.export.real_frontend import real_front_end
from cpprune.export.target import Job
from cpprune.export.tflite.graph import NETWORK, OUTPUT, renamed
from cpprune.export.tflite.runtime import Runtime
from shards.errors import UserError

SIGNATURE = "serving_default"
TOLERANCE = 1e-3  # of the converted network's logits up to 1, and in proportion beyond


class WholeModel(nn.Module):
    """From what the file takes to the logits, in real numbers.

    Args:
        job: what is exported.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        # litert-torch writes the names of these two into those of their values.
        self.front_end = real_front_end(job.model, job.input)
        self.network = copy.deepcopy(job.model.network).float().eval()

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
    with quiet(), tempfile.TemporaryDirectory() as folder:
        import litert_torch

        target = Path(folder) / "model.tflite"
        try:
            converted = litert_torch.convert(WholeModel(job).eval(), (torch.from_numpy(clips[:1]),))
            converted.export(str(target))
        except Exception as error:  # it documents no common class
            raise UserError(
                f"the network cannot be exported to TensorFlow Lite: {first_line(error)}"
            ) from error
        graph = target.read_bytes()
    graph = renamed(graph, job.input, "_front_end", "_network")
    expected = job.model.logits(job.clips).numpy()
    found = Runtime(graph)(clips)
    scale = max(float(np.abs(expected).max()), 1.0)
    if found.shape != expected.shape or not np.abs(found - expected).max() < TOLERANCE * scale:
        raise UserError(
            "the network cannot be exported to TensorFlow Lite: the exported one gives other logits"
        )
    return _quantized(graph, job) if job.precision == "int8" else graph


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
