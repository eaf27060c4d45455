"""The folder of a model in C: sources, a test program that holds clips, a Makefile and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from cpprune.export.c.source import generate, simplify
from cpprune.export.frontend import frame_graph
from cpprune.export.inputs import model_input
from cpprune.export.network import IR_VERSION, OPSET
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.audio.config import MelSpec
    from cpprune.export.target import Job

TYPES = {"waveform": "float", "int16": "int16_t", "image": "uint8_t", "features": "float"}
RANGES = {
    "waveform": "from -1 to 1",
    "int16": "samples as in a WAV file",
    "image": "from 0 to 255",
    "features": "what the network itself takes: the front end is left out",
}
COLUMNS = 92  # of a line of numbers


@dataclass(frozen=True)
class Project:
    """A model in C.

    Attributes:
        sources: the model's own files by name.
        ram: bytes of all its static memory; the clip and the logits are the caller's.
        constants: bytes of the `network`'s constants, and of the `front_end`'s.
    """

    sources: dict[str, str]
    ram: int
    constants: dict[str, int]


def model_sources(job: Job, network: onnx.ModelProto) -> Project:
    """Return a model in C.

    Args:
        job: what is exported.
        network: its network, simplified.

    Raises:
        UserError: emx-onnx-cgen does not know an operator of the network.
    """
    model, spec = job.model, job.model.features.spec
    spec = None if job.input == "features" else spec
    parts = {"network": generate(network, "model_network")}
    if spec is not None:
        parts["front_end"] = generate(frame_model(spec), "model_front_end")
    work = max(part.work for part in parts.values())
    ram = 4 * max(work, 1) + sum(part.static for part in parts.values())
    if job.input != "features":
        ram += 4 * prod(model.input_shape)
    if spec is not None:
        ram += 4 * (spec.n_fft + spec.n_mels)
    about = {
        "classes": [_string(name) for name in model.classes],
        "input_shape": model.input_shape,
        "input_size": prod(_shape(job)),
        "input_type": TYPES[job.input],
        "kind": job.input,
        "layout": _layout(job),
        "ram": ram,
        "range": RANGES[job.input],
        "sample_rate": model.sample_rate,
        "spec": spec,
        "work": work,
    }
    sources = {name: render(name, **about) for name in ("model.h", "model.c")}
    sources |= {f"{name}.c": part.text for name, part in parts.items()}
    constants = {"front_end": 0} | {name: part.constants for name, part in parts.items()}
    return Project(sources, ram, constants)


def frame_model(spec: MelSpec) -> onnx.ModelProto:
    """Return the front end of one frame in ONNX, simplified: [1, n_fft] → [1, 1, F]."""
    graph, output = frame_graph(spec, "frame")
    made = helper.make_graph(
        graph.nodes,
        "front_end",
        [helper.make_tensor_value_info("frame", onnx.TensorProto.FLOAT, [1, spec.n_fft])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [1, 1, spec.n_mels])],
        list(graph.constants.values()),
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return simplify(helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION))


def test_program(job: Job, expected: NDArray[np.float32], reference: str, tolerance: float) -> str:
    """Return the program that compares the logits of the job's clips with others.

    Args:
        job: what is exported.
        expected: logits [clips, K].
        reference: what computed them, in words.
        tolerance: largest difference that passes.
    """
    stored: NDArray[np.generic]
    if job.input == "features":
        stored, kind = model_input(job.clips, job.input, job.model.features), "float"
    else:
        stored = job.clips.numpy()
        kind = "uint8_t" if job.input == "image" else "int16_t"
    return render(
        "test.c",
        clips=[_numbers(clip) for clip in stored.reshape(len(stored), -1)],
        expected=[_numbers(logits) for logits in expected],
        kind=job.input,
        reference=reference,
        stored_type=kind,
        tolerance=f"{tolerance:.3e}",
    )


def examples(job: Job) -> dict[str, str]:
    """Return the programs that show how to use the model: with continuous audio, if it takes audio."""
    if job.input not in ("waveform", "int16"):
        return {}
    return {"listen.c": render("listen.c", kind=job.input, sample_rate=job.model.sample_rate)}


def makefile(sources: Mapping[str, str], listens: bool) -> str:
    """Return the Makefile of a project of these sources, with or without the program that listens."""
    names = [name for name in sources if name.endswith(".c")]
    return render("Makefile", sources=names, listens=listens)


def metadata(job: Job, project: Project, compiled: Mapping[str, object] | None) -> bytes:
    """Return `metadata.json`: what an exported ONNX file says of itself, and what the C costs."""
    content = {
        "target": "c",
        **asdict(job.metadata()),
        "bytes": {**project.constants, "ram": project.ram},
        "compiled": compiled,
    }
    return f"{to_json(content, indent=2)}\n".encode()


def render(name: str, **values: object) -> str:
    """Return a file of `templates/`, filled in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # noqa: S701 (C is not HTML)
        loader=PackageLoader("cpprune.export.c"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(values)


def _shape(job: Job) -> tuple[int, ...]:
    return job.model.input_shape if job.input == "features" else job.model.clip_shape


def _layout(job: Job) -> str:
    if job.input == "features":
        return "{} x {} x {}, row by row".format(*_shape(job))
    return "one after the other" if len(_shape(job)) == 1 else "row by row"


def _string(text: str) -> str:
    """Return a C string: printable ASCII as it is, all else as octal escapes of UTF-8."""
    safe = range(0x20, 0x7F)
    return '"{}"'.format(
        "".join(
            chr(byte) if byte in safe and chr(byte) not in '"\\?' else f"\\{byte:03o}"
            for byte in text.encode()
        )
    )


def _numbers(values: NDArray[np.generic]) -> str:
    """Return a row of numbers as C writes them, in lines; floats to the last bit."""
    if values.dtype.kind == "f":
        words = [f"{value:.9g}" for value in values.tolist()]
        words = [f"{word}f" if set(word) & set(".e") else f"{word}.0f" for word in words]
    else:
        words = [str(value) for value in values.tolist()]
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > COLUMNS:
            lines.append(line.rstrip())
            line = ""
        line += f"{word}, "
    return "\n        ".join([*lines, line.rstrip().removesuffix(",")])
