"""C99: a folder of C without heap or operating system, and a program that tests it on the device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.export.target import CHECK, Job, Product, target
from shards.files.ownership import Kind, read_mark

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

FILES = (
    *("metadata.json", "model.h", "model.c", "network.c", "front_end.c"),
    *("test.c", "listen.c", "Makefile", CHECK),
)
FP32_TOLERANCE = 1e-4  # of logits up to 1, and in proportion beyond
INT8_TOLERANCE = 2e-2  # of the largest logit: one that is rounded otherwise changes others


def _is_ours(folder: Path) -> bool:
    mark = read_mark(folder / "metadata.json")
    return mark.get("target") == "c" and {"cpprune_version", "weights_sha256"} <= mark.keys()


@target(
    "c",
    help="a folder with C99 for microcontrollers",
    precisions=("fp32", "int8"),
    folder=Kind(name="a model in C", parts=FILES, made=_is_ours, replaced=True),
    needs=("onnx", "onnxscript", "onnxruntime", "emx_onnx_cgen"),
    extra="export-c",
    int8="integer",
    as_trained=True,
    keeps_float=True,
)
def _to_c(job: Job) -> Product:
    from cpprune.evaluation import dcase
    from cpprune.export.c import host, project
    from cpprune.export.c.source import simplify
    from cpprune.export.complexity import onnx_complexity
    from cpprune.export.integer_operators import with_integer_operators
    from cpprune.export.network import export_network
    from cpprune.export.qdq import export_quantized
    from cpprune.export.quantize import quantize_int8
    from cpprune.models.quantized import is_quantized

    if job.run:
        host.required_compiler("latency in C" if job.trial else "--check")
    quantized = is_quantized(job.model.network)
    make = export_quantized if quantized else export_network
    network = make(job.model.network, job.model.input_shape)
    cost = onnx_complexity(network, 0)
    if quantized:
        network = with_integer_operators(network)
    elif job.precision == "int8":
        inputs = job.calibration_features()
        network = quantize_int8(network, inputs, job.keep_float, integer=True)
    network = simplify(network)
    made = project.model_sources(job, network)
    compiled = None if job.trial else host.sizes(made.sources)
    if job.precision == "fp32":
        expected, reference = job.model.logits(job.clips).numpy(), "torch"
        tolerance = FP32_TOLERANCE * max(1.0, float(abs(expected).max()))
    else:
        expected, reference = _run(network, job), "the quantised network in onnxruntime"
        tolerance = INT8_TOLERANCE * float(abs(expected).max())
    sizes = {**made.constants, "ram": made.ram}
    if compiled:
        sizes["flash"] = compiled["flash"]
    limits = dcase.limits(cost["macs"], {"network": made.constants["network"]})
    complexity: dcase.Complexity = {**cost, "bytes": sizes, "limits": limits}
    examples = project.examples(job)
    texts = {
        **made.sources,
        **examples,
        "test.c": project.test_program(job, expected, reference, tolerance),
        "Makefile": project.makefile(made.sources, bool(examples)),
    }
    files = {name: text.encode() for name, text in texts.items()}
    files["metadata.json"] = project.metadata(job, made, compiled)
    exported = host.CModel(made.sources, job.model, job.input, complexity) if job.run else None
    flash = (
        f"{compiled['flash']:,} bytes of flash ({compiled['compiler']}{compiled['machine']}, -Os)"
        if compiled
        else f"{sum(made.constants.values()):,} bytes of constants (no C compiler measured the code)"
    )
    return Product(
        files=files,
        complexity=complexity,
        exported=exported,
        summary=f"{flash}, {made.ram:,} bytes of RAM",
    )


def _run(network: onnx.ModelProto, job: Job) -> NDArray[np.float32]:
    """Return the logits of the job's clips, computed by onnxruntime without rewriting the graph."""
    import numpy as np

    from cpprune.export.inputs import model_input
    from cpprune.export.onnx_session import open_session

    session = open_session(network, as_written=True)
    features = model_input(job.clips, "features", job.model.features)
    return np.concatenate([session.run(None, {"features": x[None]})[0] for x in features])
