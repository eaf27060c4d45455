"""TensorFlow Lite: one file, with the front end inside, for phones and microcontrollers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.export.target import Job, Product, file_summary, target

if TYPE_CHECKING:
    from cpprune.export.tflite.model import TfliteModel


def _load(path: Path, threads: int | None = None) -> TfliteModel:
    from cpprune.export.tflite.model import load_tflite

    return load_tflite(path, threads)


@target(
    "tflite",
    help="one TensorFlow Lite file",
    precisions=("fp32", "int8"),
    suffix=".tflite",
    needs=("onnx", "onnxruntime", "litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
    extra="tflite",
    as_trained=True,
    load=_load,
)
def _to_tflite(job: Job) -> Product:
    from cpprune.export.sealed_archive import with_metadata
    from cpprune.export.tflite.convert import convert
    from cpprune.export.tflite.model import TfliteModel

    data = with_metadata(convert(job), job.metadata())
    exported = TfliteModel(data)
    cost = exported.complexity()
    return Product(
        files={"": data}, complexity=cost, exported=exported, summary=file_summary(cost["bytes"])
    )
