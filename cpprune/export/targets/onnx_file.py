"""ONNX: one file, with the front end inside, for onnxruntime on servers, phones and in browsers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.export.target import Job, Product, file_summary, target
from shards.log import LOG

if TYPE_CHECKING:
    import onnx

    from cpprune.export.onnx_model import OnnxModel

SATURATION = 0.05  # of the largest logit; rounding at ties alone changes less
SATURATION_CLIPS = 64
FIRST_IN_FLOAT = ", or keep the first layer in float32"


def _load(path: Path, threads: int | None = None) -> OnnxModel:
    from cpprune.export.onnx_model import load_onnx

    return load_onnx(path, threads)


@target(
    "onnx",
    help="one ONNX file",
    precisions=("fp32", "fp16", "int8"),
    suffix=".onnx",
    needs=("onnx", "onnxscript", "onnxruntime"),
    int8="qdq",
    as_trained=True,
    keeps_float=True,
    load=_load,
)
def _to_onnx(job: Job) -> Product:
    from cpprune.export.build import build_file
    from cpprune.export.onnx_model import OnnxModel

    data = build_file(job.model, _network(job), job.input, job.precision, job.weights_sha256)
    exported = OnnxModel(data, threads=1)
    if job.precision == "int8" and not job.trial:
        _warn_of_saturation(job, exported, OnnxModel(data, threads=1, exact=False))
    cost = exported.complexity()
    return Product(
        files={"": data}, complexity=cost, exported=exported, summary=file_summary(cost["bytes"])
    )


def _warn_of_saturation(job: Job, exact: OnnxModel, default: OnnxModel) -> None:
    """Say so if onnxruntime's default gives other logits on this machine's processor."""
    from cpprune.export.onnx_session import EXACT

    clips = job.clips if job.calibration is None else job.calibration[:SATURATION_CLIPS]
    expected, found = exact.logits(clips), default.logits(clips)
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if difference > SATURATION * largest:
        LOG.warning(
            "on processors such as this one, onnxruntime's default lets products of int8 saturate: "
            "logits up to %.2f change by up to %.2f; set its session option %s to %s there, as cpprune "
            "does%s",
            *(largest, difference, *EXACT, "" if _keeps_first(job) else FIRST_IN_FLOAT),
        )


def _keeps_first(job: Job) -> bool:
    """Return whether the first layer is in float32 already."""
    from cpprune.export.quantize import FIRST
    from cpprune.models.quantized import quantization_of

    trained = quantization_of(job.model.network)
    return FIRST in (trained.keep_float if trained else job.keep_float)


def _network(job: Job) -> onnx.ModelProto:
    """Return the network in ONNX at the precision that is wanted."""
    from cpprune.export.network import export_network
    from cpprune.export.qdq import export_quantized
    from cpprune.export.quantize import quantize_int8, store_fp16
    from cpprune.models.quantized import is_quantized

    if is_quantized(job.model.network):
        return export_quantized(job.model.network, job.model.input_shape)
    network = export_network(job.model.network, job.model.input_shape)
    if job.precision == "fp16":
        return store_fp16(network)
    if job.precision == "fp32":
        return network
    return quantize_int8(network, job.calibration_features(), job.keep_float)
