"""Elementwise functions are taken into the one before; what is computed stays the same, to the bit."""

import ctypes
import subprocess

import numpy as np
import pytest

from cpprune.export.c.fusion import fuse
from cpprune.export.c.generated import functions_of

HEAD = (
    "#include <stdint.h>\n#include <math.h>\ntypedef int32_t idx_t;\n#define EMX_NODE_FN static\n\n"
)
# Sums of neighbours, a bounded line, a shift by another array, and two ways to round.
SUMS = """EMX_NODE_FN void sums(const float input0[2][5], const float scale[1], float output[2][4]) {
    for (idx_t c = 0; c < 2; ++c) {
        const idx_t c_global = 0 + c;
        for (idx_t o = 0; o < 4; ++o) {
            float acc = 0.0f;
            for (idx_t k = 0; k < 2; ++k) {
                acc += input0[c][o + k] * scale[0];
            }
            output[c_global][o] = (float)acc;
        }
    }
}
"""


def elementwise(name, given, made, value, more="", before=""):
    return (
        f"EMX_NODE_FN void {name}(const {given} input0[2][4]{more}, {made} output[2][4]) {{\n{before}"
        "    for (idx_t i0 = 0; i0 < 2; ++i0) {\n"
        "        for (idx_t i1 = 0; i1 < 4; ++i1) {\n"
        f"            float scaled = {value};\n"
        f"            output[i0][i1] = ({made})scaled;\n"
        "        }\n"
        "    }\n"
        "}\n"
    )


BOUNDED = elementwise("bounded", "float", "float", "fminf(input0[i0][i1], 3.0f)")
SHIFTED = elementwise(
    "shifted",
    "float",
    "float",
    "input0[i0][i1] * factor + shift[0][i1]",
    ", const float scale[1], const float shift[1][4]",
    "    const float factor = scale[0];\n",
)
ROUNDED = elementwise(
    "rounded", "float", "int8_t", "nearbyintf(input0[i0][i1] / scale[0])", ", const float scale[1]"
)
FLOATS = elementwise("floats", "int8_t", "float", "input0[i0][i1] * 2.0f")
TEXT = HEAD + "\n".join([SUMS, BOUNDED, SHIFTED, ROUNDED, FLOATS])
ALL = [
    "    sums(x, s, a);",
    "    bounded(a, b);",
    "    shifted(b, s, t, c);",
    "    rounded(c, s, d);",
]


def run(text, statements, tmp_path, name):
    """Return what the statements write to d, of a made-up x, s and t."""
    function = (
        "void all(const float x[2][5], const float s[1], const float t[1][4], int8_t d[2][4]) {\n"
        "    float a[2][4], b[2][4], c[2][4];\n    (void)a, (void)b, (void)c;\n"
    )
    (tmp_path / f"{name}.c").write_text(f"{text}\n{function}" + "\n".join(statements) + "\n}\n")
    command = ["cc", "-std=c99", "-O2", "-shared", "-fPIC", "-Wno-unused-function"]
    subprocess.run([*command, "-o", f"{name}.so", f"{name}.c", "-lm"], cwd=tmp_path, check=True)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 5, shape).astype("f4") for shape in ((2, 5), (1,), (1, 4))]
    found = np.zeros((2, 4), "i1")
    library = ctypes.CDLL(str(tmp_path / f"{name}.so"))
    library.all(*(ctypes.c_void_p(array.ctypes.data) for array in (*arrays, found)))
    return found


def test_a_chain_is_one_function_that_computes_the_same(tmp_path):
    text, statements = fuse(TEXT, ALL, ["a", "b", "c", "d"])
    (statement,) = statements
    assert statement == "    rounded(x, s, s, t, s, d);"
    assert set(functions_of(text)) == {"rounded", "floats"}
    whole, fused = run(TEXT, ALL, tmp_path, "whole"), run(text, statements, tmp_path, "fused")
    assert whole.std() > 0
    assert (whole == fused).all()


@pytest.mark.parametrize(
    "statements",
    [
        ["    sums(x, s, a);", "    bounded(a, b);", "    shifted(a, s, t, c);"],  # read again
        ["    sums(x, s, a);", "    (void)x;", "    bounded(a, b);"],  # something between
        ["    rounded(x, s, a);", "    floats(a, b);"],  # the result is larger
        ["    bounded(a, b);", "    sums(b, s, c);"],  # not elementwise
        ["    sums(x, s, logits);", "    bounded(logits, b);"],  # not a buffer
    ],
)
def test_what_is_not_taken_in(statements):
    assert fuse(TEXT, statements, ["a", "b", "c", "d"]) == (TEXT, statements)


def test_a_name_that_would_hide_another():
    text = TEXT.replace("float scaled = fminf", "float c_global = fminf").replace(
        "output[i0][i1] = (float)scaled;", "output[i0][i1] = (float)c_global;", 1
    )
    assert fuse(text, ALL[:2], ["a", "b"]) == (text, ALL[:2])
