"""Elementwise functions of generated C are taken into the one that makes their input.

What lies between them is then a number instead of an array: of a convolution, its hard swish and the
quantisation of that, only the result takes memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cpprune.export.c.generated import OUTPUT, Call, Function, call_of, functions_of

LOCAL = re.compile(r"\b\w+ (\w+) = ")


def fuse(text: str, statements: Sequence[str], buffers: Iterable[str]) -> tuple[str, list[str]]:
    """Return a C source whose elementwise functions are part of others where that saves memory.

    Args:
        text: with the functions of all nodes.
        statements: that call them, in order.
        buffers: arrays that nothing but these statements uses.
    """
    functions, lines = functions_of(text), list(statements)
    buffers, made = set(buffers), 0
    number = 1
    while number < len(lines):
        first, second = (call_of(lines[n], functions) for n in (number - 1, number))
        fused = None
        if first and second:
            uses = Counter(re.findall(r"\w+", " ".join(lines)))
            fused = _fused(first, second, buffers, uses, f"f{made + 1}_")
        if fused is None or first is None or second is None:
            number += 1
            continue
        made += 1
        text = text.replace(f"{second.function}\n", f"{fused.function}\n")
        text = text.replace(f"{first.function}\n", "")
        functions[fused.function.name] = fused.function
        lines[number - 1 : number + 1] = [str(fused)]
        number = max(1, number - 1)  # the one before may take in more now
    return text, lines


def _fused(
    first: Call, second: Call, buffers: set[str], uses: Counter[str], prefix: str
) -> Call | None:
    """Return one call in place of two consecutive ones; None if that cannot be or saves nothing."""
    between = first.arguments.get(OUTPUT, "")
    taken = [name for name, given in second.arguments.items() if given == between]
    if between not in buffers or uses[between] != 2 or len(taken) != 1:
        return None
    (name,) = taken
    maker, output = first.function.by_name[OUTPUT], second.function.by_name.get(OUTPUT)
    if output is None or output.bytes > maker.bytes or not second.function.is_pointwise(name):
        return None
    body = _body(first.function, second.function, name, prefix)
    if body is None:
        return None
    kept = {n: n if n == OUTPUT else f"{prefix}{n}" for n in second.arguments if n != name}
    parameters = [own for own in first.function.parameters if own.name != OUTPUT]
    parameters += [replace(second.function.by_name[n], name=new) for n, new in kept.items()]
    arguments = {n: given for n, given in first.arguments.items() if n != OUTPUT}
    arguments |= {new: second.arguments[n] for n, new in kept.items()}
    made = Function(second.function.name, tuple(parameters), body)
    return Call(made, {parameter.name: arguments[parameter.name] for parameter in parameters})


def _body(first: Function, second: Function, name: str, prefix: str) -> str | None:
    """Return the body of the first function, which does with each value what the second does."""
    write, place, nest = first.write, second.write, second.nest
    if write is None or place is None or nest is None:
        return None
    lines = [*nest.before, *nest.inner]
    text = "\n".join(line.strip() for line in lines)
    words = set(re.findall(r"\w+", " ".join(write.index)))
    if words & set(LOCAL.findall(text)):
        return None  # the second would hide what the first counts with
    value = f"{prefix}value"
    text = re.sub(rf"\b{name}(?:\[[^\[\]]+\])+", value, text)
    numbers = {own: at for own, at in zip(place.index, write.index, strict=True) if own != "0"}
    renamed = {n: f"{prefix}{n}" for n in second.by_name if n not in (name, OUTPUT)}
    text = re.sub(r"\w+", lambda word: (numbers | renamed).get(word[0], word[0]), text)
    kind = first.by_name[OUTPUT].kind
    block = [
        "{",
        f"    {kind} {value} = {write.value};",
        *(f"    {t}" for t in text.splitlines()),
        "}",
    ]
    return first.body.replace(write.line, "\n".join(write.indent + line for line in block))
