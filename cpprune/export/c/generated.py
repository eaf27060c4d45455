"""The functions that emx-onnx-cgen generates, one for each node, as far as they have to be understood.

EMX_NODE_FN void node1_relu(const float input0[1][8], float output[1][8]) {
    for (idx_t i0 = 0; i0 < 1; ++i0) {
        for (idx_t i1 = 0; i1 < 8; ++i1) {
            output[i0][i1] = ref_scalar_f32_relu(input0[i0][i1]);
        }
    }
}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

FUNCTION = re.compile(r"^EMX_NODE_FN void (\w+)\((.*?)\) \{\n(.*?)^\}", re.DOTALL | re.MULTILINE)
PARAMETER = re.compile(r"(const )?(\w+) (\w+)((?:\[\d+\])+)")
CALL = re.compile(r"\s*(\w+)\((.*)\);")
LOOP = re.compile(r" *for \(idx_t (\w+) = 0; \w+ < \d+; \+\+\w+\) \{")
OUTPUT = "output"
WRITE = re.compile(rf"^( *){OUTPUT}((?:\[[^\[\]]+\])+) = ([^;]+);$", re.MULTILINE)
BYTES = {"float": 4, "int8_t": 1, "uint8_t": 1, "int32_t": 4, "int64_t": 8, "bool": 1}


@dataclass(frozen=True)
class Parameter:
    """An array that a function takes: `const KIND name[1][8]`."""

    const: str
    kind: str
    name: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.const}{self.kind} {self.name}{''.join(f'[{n}]' for n in self.sizes)}"

    @property
    def bytes(self) -> int:
        """Return the size of the array."""
        return BYTES[self.kind] * prod(self.sizes)


@dataclass(frozen=True)
class Write:
    """The one place where a function writes its output: `output[n][c] = value;`."""

    line: str
    indent: str
    index: tuple[str, ...]
    value: str


@dataclass(frozen=True)
class Nest:
    """A body of loops, one in the other: the statements before them, and those in the innermost."""

    before: list[str]
    variables: frozenset[str]
    inner: list[str]


@dataclass(frozen=True)
class Function:
    """A generated function.

    Attributes:
        name: of it.
        parameters: in order; the one called `output` is written.
        body: the lines between its braces.
    """

    name: str
    parameters: tuple[Parameter, ...]
    body: str

    def __str__(self) -> str:
        parameters = ", ".join(map(str, self.parameters))
        return f"EMX_NODE_FN void {self.name}({parameters}) {{\n{self.body}}}"

    @cached_property
    def by_name(self) -> dict[str, Parameter]:
        """Return the parameters by name."""
        return {parameter.name: parameter for parameter in self.parameters}

    @cached_property
    def write(self) -> Write | None:
        """Return where it writes its output, if at one place only, and reads it nowhere."""
        found = list(WRITE.finditer(self.body))
        if len(found) != 1 or len(re.findall(rf"\b{OUTPUT}\b", self.body)) != 1:
            return None
        indent, index, value = found[0].groups()
        return Write(found[0][0], indent, indices(index), value)

    @cached_property
    def nest(self) -> Nest | None:
        """Return its loops, if it is nothing else."""
        lines = self.body.splitlines()
        first = next((n for n, line in enumerate(lines) if LOOP.fullmatch(line)), len(lines))
        heads = []
        for line in lines[first:]:
            head = LOOP.fullmatch(line)
            if head is None:
                break
            heads.append(head[1])
        end = len(lines) - len(heads)
        inner = lines[first + len(heads) : end]
        closed = all(line.strip() == "}" for line in lines[end:])
        if not heads or not closed or any("for (" in line for line in (*lines[:first], *inner)):
            return None
        return Nest(lines[:first], frozenset(heads), inner)

    def is_pointwise(self, name: str) -> bool:
        """Return whether an element of the output needs the same one of an input, and is written once.

        All of its loops number the output, so each element is read in the one iteration that writes it.
        """
        given, output = self.by_name[name], self.by_name.get(OUTPUT)
        if output is None or given.sizes != output.sizes or self.write is None or self.nest is None:
            return False
        place = self.write.index
        used = re.findall(rf"\b{name}\b((?:\[[^\[\]]+\])*)", self.body)
        return (
            bool(used)
            and self.nest.variables <= set(place)
            and all(_same(indices(index), place, given.sizes) for index in used)
        )


@dataclass(frozen=True)
class Call:
    """A statement that calls a function: its arguments by the names of the parameters, in order."""

    function: Function
    arguments: dict[str, str]

    def __str__(self) -> str:
        return f"    {self.function.name}({', '.join(self.arguments.values())});"


def functions_of(text: str) -> dict[str, Function]:
    """Return the functions of a C source by name."""
    found = {}
    for match in FUNCTION.finditer(text):
        name, declared, body = match.groups()
        parameters = tuple(
            Parameter(const, kind, own, tuple(int(n) for n in re.findall(r"\d+", sizes)))
            for const, kind, own, sizes in PARAMETER.findall(declared)
        )
        function = Function(name, parameters, body)
        if str(function) == match[0]:  # it takes nothing but arrays
            found[name] = function
    return found


def call_of(statement: str, functions: Mapping[str, Function]) -> Call | None:
    """Return a statement as a call of one of the functions; None if it is none."""
    found = CALL.fullmatch(statement)
    function = functions.get(found[1]) if found else None
    if found is None or function is None:
        return None
    arguments = [word.strip() for word in found[2].split(",")]
    return Call(function, dict(zip(function.by_name, arguments, strict=True)))


def indices(text: str) -> tuple[str, ...]:
    """Return the parts of `[a][b]`."""
    return tuple(re.findall(r"\[([^\[\]]+)\]", text))


def _same(one: tuple[str, ...], other: tuple[str, ...], sizes: tuple[int, ...]) -> bool:
    """Return whether two indices name the same element; an axis of one has the same one at any."""
    return len(one) == len(other) == len(sizes) and all(
        a == b or size == 1 for a, b, size in zip(one, other, sizes, strict=True)
    )
