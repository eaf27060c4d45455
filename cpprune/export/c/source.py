"""An ONNX graph as one C function, by emx-onnx-cgen, its buffers in memory that they share."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from math import isclose, prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from cpprune.export.c.fusion import fuse
from cpprune.export.c.generated import BYTES, functions_of
from cpprune.export.c.in_place import homes_of
from cpprune.export.c.memory import Buffer, plan
from cpprune.export.file_model import first_line
from cpprune.export.onnx_session import open_session
from shards.errors import UserError

NAME = "cpprune_graph"  # of a function, until it gets its own
WORK = "work"
FLOAT = "float"
CHARACTERS = ("int8_t", "uint8_t")
DECLARATION = re.compile(r"    (\w+) (\w+)((?:\[\d+\])+);")
ELEMENTS = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(int8)": onnx.TensorProto.INT8,
    "tensor(uint8)": onnx.TensorProto.UINT8,
    "tensor(int32)": onnx.TensorProto.INT32,
    "tensor(int64)": onnx.TensorProto.INT64,
    "tensor(bool)": onnx.TensorProto.BOOL,
}


@dataclass(frozen=True)
class Source:
    """A function in C: void NAME(const T input[…], float output[…], float *work).

    Attributes:
        text: of the file; all but the function is static.
        work: floats that it needs at `work`.
        static: bytes of its own buffers, which are neither floats nor characters.
        constants: bytes of the constants.
    """

    text: str
    work: int
    static: int
    constants: int

    @property
    def ram(self) -> int:
        """Bytes of all its memory but input and output."""
        return 4 * max(self.work, 1) + self.static


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph for one clip, its constant parts computed, with the shape of every value.

    Args:
        model: with one input and one output, whose first dimension is the batch; it is not changed.

    Raises:
        UserError: onnxruntime does not compute the graph, or it has values that C cannot hold.
    """
    one = onnx.ModelProto()
    one.CopyFrom(model)
    for value in (*one.graph.input, *one.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del one.graph.value_info[:]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "simple.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(
                one.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # it documents no common class
            raise UserError(f"the network cannot be exported to C: {first_line(error)}") from error
        simple = onnx.load(target)
    _fuse_hard_swish(simple.graph)
    _pool_integers(simple.graph)
    # Operators outside of the standard have shapes that only onnxruntime knows.
    everything = onnx.ModelProto()
    everything.CopyFrom(simple)
    outputs = {value.name for value in simple.graph.output}
    names = [name for node in simple.graph.node for name in node.output if name not in outputs]
    everything.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name)
    del simple.graph.value_info[:]
    for value in open_session(everything, as_written=True).get_outputs():
        kind = ELEMENTS.get(value.type)
        if kind is None:
            raise UserError(
                f"the network cannot be exported to C: it computes {value.name} as {value.type}; "
                "compute it in float32"
            )
        if value.name not in outputs:
            simple.graph.value_info.append(
                helper.make_tensor_value_info(value.name, kind, value.shape)
            )
    simple.producer_name, simple.producer_version = "cpprune", ""
    return simple


def _fuse_hard_swish(graph: onnx.GraphProto) -> None:
    """Write x · HardSigmoid(x), into which onnxruntime takes it apart, as one operator again.

    It needs the memory of one value rather than two.
    """
    readers = Counter(name for node in graph.node for name in node.input)
    hard_sigmoids = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "HardSigmoid" and readers[node.output[0]] == 1 and _of_hard_swish(node)
    }
    fused = {}
    for node in graph.node:
        if node.op_type == "Mul":
            for x, factor in (node.input, reversed(node.input)):
                if factor in hard_sigmoids and hard_sigmoids[factor].input[0] == x:
                    fused[factor] = x
    nodes = []
    for node in graph.node:
        factor = next((name for name in node.input if name in fused), None)
        if factor is not None:
            node = helper.make_node("HardSwish", [fused[factor]], node.output, name=node.name)
        if node.output[0] not in fused:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _of_hard_swish(node: onnx.NodeProto) -> bool:
    given = {attribute.name: attribute.f for attribute in node.attribute}
    return isclose(given.get("alpha", 0.2), 1 / 6, rel_tol=1e-6) and given.get("beta", 0.5) == 0.5


def _pool_integers(graph: onnx.GraphProto) -> None:
    """Let max pooling between a dequantisation and the same quantisation work on the integers.

    The largest value is that of the largest integer, so nothing changes but the memory.
    """
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    readers = Counter(name for node in graph.node for name in node.input)
    outputs = {value.name for value in graph.output}
    for node in list(graph.node):
        pool = makers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        source = makers.get(pool.input[0]) if pool and pool.op_type == "MaxPool" else None
        if pool is None or source is None or source.op_type != "DequantizeLinear":
            continue
        alone = all(readers[n] == 1 and n not in outputs for n in (*pool.output, *source.output))
        scales = [[constants.get(name) for name in maker.input[1:]] for maker in (node, source)]
        known = all(value is not None for own in scales for value in own)
        if not (alone and known and all(map(np.array_equal, *scales))):
            continue
        pool.input[0], pool.output[0] = source.input[0], node.output[0]
        graph.node.remove(node)
        graph.node.remove(source)


def generate(model: onnx.ModelProto, name: str) -> Source:
    """Return the C function of a graph.

    Args:
        model: simplified.
        name: of the function.

    Raises:
        UserError: emx-onnx-cgen does not know one of its operators.
    """
    from emx_onnx_cgen.errors import CompilerError

    try:
        text = re.sub(rf"\b{NAME}(?=\b|_load\b)", name, _compiler().compile(model))
    except CompilerError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the network cannot be exported to C: {reason}") from error
    # Constants of several files would have the same names.
    text = re.sub(r"^extern const .*;\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^const ", "static const ", text, flags=re.MULTILINE)
    text, work, static = _share_memory(text, name)
    constants = sum(onnx.numpy_helper.to_array(c).nbytes for c in model.graph.initializer)
    return Source(text, work, static, constants)


@cache
def _compiler() -> Any:
    """Return the compiler: the same one each time, since it takes seconds to read its templates."""
    from emx_onnx_cgen.compiler import Compiler, CompilerOptions

    # Neither the heap nor files: all temporary buffers on the stack, all constants in the source.
    options = CompilerOptions(
        model_name=NAME, large_temp_threshold_bytes=0, large_weight_threshold=0
    )
    return Compiler(options)


def _share_memory(text: str, name: str) -> tuple[str, int, int]:
    """Replace the generated function's buffers, which are on the stack, by parts of planned memory.

    Returns:
        text: with the function's new parameter `float *work`.
        work: floats at `work`.
        static: bytes of memory for buffers that are neither floats nor characters.
    """
    text, removed = re.subn(rf"_Bool {name}_load\(.*?\n}}\n+", "", text, flags=re.DOTALL)
    head, found, body = text.partition(f"void {name}(")
    signature, opened, body = body.partition(") {\n")
    assert removed == 1, "emx-onnx-cgen writes a loader"
    assert found, "emx-onnx-cgen writes the function that it was asked for"
    assert opened, "its body follows"
    lines = body.splitlines()
    declared = {
        match[2]: match for match in (DECLARATION.fullmatch(line) for line in lines) if match
    }
    statements = [line for line in lines if not DECLARATION.fullmatch(line)]
    head, statements = fuse(head, statements, declared)
    words = set(re.findall(r"\w+", " ".join(statements)))
    declared = {buffer: match for buffer, match in declared.items() if buffer in words}
    homes = homes_of(list(declared), statements, functions_of(head))
    buffers: dict[str, list[Buffer]] = {WORK: []}
    for home in sorted(set(homes.values()), key=list(declared).index):
        names = "|".join(name for name in homes if homes[name] == home)
        used = [k for k, line in enumerate(statements) if re.search(rf"\b({names})\b", line)]
        kind = declared[home][1]
        size = BYTES[kind] * prod(_shape(declared[home]))
        buffers.setdefault(_place(kind), []).append(Buffer(home, size, used[0], used[-1]))
    plans = {place: plan(of_place) for place, of_place in buffers.items()}
    pointers = [
        _pointer(match, plans[_place(match[1])].offsets[homes[name]])
        for name, match in declared.items()
    ]
    if not buffers[WORK]:
        pointers.append("    (void)work;\n")
    own = {
        kind: plans[_place(kind)].size for kind in BYTES if _place(kind) in plans.keys() - {WORK}
    }
    memory = [
        f"MODEL_MEMORY static {kind} {_place(kind)}[{size // BYTES[kind]}];\n"
        for kind, size in own.items()
    ]
    head += "#ifndef MODEL_MEMORY\n#define MODEL_MEMORY\n#endif\n\n" + "".join(memory) + "\n"
    function = f"void {name}({signature}, float *restrict work) {{\n"
    text = head + function + "".join(pointers) + "\n".join(statements) + "\n"
    return text, -(-plans[WORK].size // BYTES[FLOAT]), sum(own.values())


def _place(kind: str) -> str:
    """Return the memory of buffers of a type: C lets characters lie in memory that also holds floats."""
    return WORK if kind in (FLOAT, *CHARACTERS) else f"memory_{kind}"


def _pointer(declaration: re.Match[str], offset: int) -> str:
    """Return the declaration of a buffer that lies in its memory, so many bytes from the beginning."""
    kind, name = declaration[1], declaration[2]
    start = f"({kind} *){WORK}" if kind in CHARACTERS else _place(kind)
    start = f"{start} + {offset // BYTES[kind]}"
    rows = "".join(f"[{n}]" for n in _shape(declaration)[1:])
    if not rows:
        return f"    {kind} *const {name} = {start};\n"
    return f"    {kind} (*const {name}){rows} = ({kind} (*){rows})({start});\n"


def _shape(declaration: re.Match[str]) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", declaration[3])]
