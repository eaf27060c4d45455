"""A buffer is written over by the elementwise function that is the last to read it."""

from cpprune.export.c.generated import functions_of
from cpprune.export.c.in_place import homes_of


def elementwise(name, given, made="float"):
    return (
        f"EMX_NODE_FN void {name}(const {given} input0[8], {made} output[8]) {{\n"
        "    for (idx_t i = 0; i < 8; ++i) {\n"
        "        output[i] = input0[i];\n"
        "    }\n"
        "}\n"
    )


FUNCTIONS = functions_of(
    elementwise("relu", "float")
    + elementwise("tanh", "float")
    + elementwise("q", "float", "int8_t")
    + elementwise("mirror_sum", "float")
    .replace("(const float input0[8],", "(const float input0[8], const float input1[8],")
    .replace("input0[i];", "input0[i] + input1[7 - i];")
)


def test_a_chain_lies_in_one_place():
    statements = ["    relu(features, a);", "    tanh(a, b);", "    relu(b, c);"]
    assert homes_of(["a", "b", "c"], statements, FUNCTIONS) == {"a": "a", "b": "a", "c": "a"}


def test_what_is_read_later_is_kept():
    statements = ["    relu(features, a);", "    tanh(a, b);", "    relu(a, c);"]
    assert homes_of(["a", "b", "c"], statements, FUNCTIONS) == {"a": "a", "b": "b", "c": "a"}


def test_another_type_lies_elsewhere():
    statements = ["    relu(features, a);", "    q(a, b);"]
    assert homes_of(["a", "b"], statements, FUNCTIONS) == {"a": "a", "b": "b"}


def test_what_is_also_read_elsewhere_than_it_is_written_is_kept():
    statements = ["    relu(features, a);", "    relu(features, b);", "    mirror_sum(a, b, c);"]
    assert homes_of(["a", "b", "c"], statements, FUNCTIONS) == {"a": "a", "b": "b", "c": "a"}
    statements = ["    relu(features, a);", "    mirror_sum(a, a, c);"]
    assert homes_of(["a", "c"], statements, FUNCTIONS) == {"a": "a", "c": "c"}
