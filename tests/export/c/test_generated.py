"""What is understood of generated functions: which are elementwise, and what their calls are given."""

import pytest

from cpprune.export.c.generated import call_of, functions_of


def node(body, parameters="const float input0[1][4], const float input1[1][4], float output[1][4]"):
    return f"EMX_NODE_FN void node({parameters}) {{\n{body}}}\n"


def loops(statement, variables="ij"):
    heads = [f"    for (idx_t {v} = 0; {v} < 4; ++{v}) {{\n" for v in variables]
    return "".join(heads) + f"        {statement}\n" + "    }\n" * len(heads)


ALL = {"input0", "input1"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (loops("output[i][j] = f(input0[i][j], input1[i][j]);"), ALL),
        # An axis of one element has the same one at any index.
        (loops("output[i][j] = f(input0[0][j], input1[i][j]);"), ALL),
        (
            "    const float x = 2;\n" + loops("output[i][j] = x * input0[i][j] + input0[i][j];"),
            {"input0"},
        ),
        # Elements elsewhere are read later.
        (loops("output[i][j] = input0[i][3 - j] + input1[i][j];"), {"input1"}),
        (loops("output[i][j] = input0[i][0] + input1[i][j];"), {"input1"}),
        # The same element is read in another round.
        (loops("output[i][j] = input0[i][j] + k;", "kij"), set()),
        (loops("output[i][j] = 0;") + loops("output[i][j] += input0[i][j];"), set()),
        (loops("output[i][j] = output[i][0] + input0[i][j];"), set()),
        ("    memcpy(output, input0, sizeof(float) * 4);\n", set()),
        (loops("output[i][j] = f(input0, i, j) + input1[i][j];"), {"input1"}),
    ],
)
def test_elementwise_functions(body, expected):
    (found,) = functions_of(node(body)).values()
    assert {name for name in ALL if found.is_pointwise(name)} == expected


def test_another_size_is_not_elementwise():
    parameters = "const int8_t input0[1][4], const float input1[4][4], float output[1][4]"
    found = functions_of(node(loops("output[i][j] = input0[i][j] + input1[i][j];"), parameters))
    assert found["node"].is_pointwise("input0")
    assert not found["node"].is_pointwise("input1")


def test_a_function_is_written_as_it_was_read():
    text = node(loops("output[i][j] = f(input0[i][j], input1[i][0]);"))
    functions = functions_of(text)
    assert f"{functions['node']}\n" == text
    assert functions_of(node("", "const float *input0, float output[1]")) == {}


def test_a_call_is_matched_with_its_function():
    functions = functions_of(node(loops("output[i][j] = f(input0[i][j], input1[i][0]);")))
    found = call_of("    node(a, b, c);", functions)
    assert found is not None
    assert found.arguments == {"input0": "a", "input1": "b", "output": "c"}
    assert str(found) == "    node(a, b, c);"
    assert call_of("    other(a, b, c);", functions) is None
    assert call_of("    (void)work;", functions) is None
