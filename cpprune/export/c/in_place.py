"""Which buffers of generated C are written over by an elementwise function, to save memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cpprune.export.c.generated import OUTPUT, Function, call_of


def homes_of(
    buffers: Sequence[str], statements: Sequence[str], functions: Mapping[str, Function]
) -> dict[str, str]:
    """Return the buffer whose memory each buffer has: its own, or one that is written over.

    Args:
        buffers: their names.
        statements: that call functions with them, in order.
        functions: by name.
    """
    found = {name: name for name in buffers}
    for number, statement in enumerate(statements):
        call = call_of(statement, functions)
        if call is None or call.arguments.get(OUTPUT) not in found:
            continue
        later = set(re.findall(r"\w+", " ".join(statements[number + 1 :])))
        kind = call.function.by_name[OUTPUT].kind
        readers: dict[str, list[str]] = {}
        for name, given in call.arguments.items():
            readers.setdefault(given, []).append(name)
        over = [
            given
            for given, names in readers.items()
            if given in found
            and given not in later
            and OUTPUT not in names
            and all(call.function.by_name[name].kind == kind for name in names)
            and all(call.function.is_pointwise(name) for name in names)
        ]
        if over:
            found[call.arguments[OUTPUT]] = found[over[0]]
    return found
