"""The command line of a trial, made from a sweep's `command` exactly as wandb's agent does."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
MACROS = ("env", "interpreter", "program", "args", "args_no_equals")
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def check_command(command: Sequence[str]) -> None:
    """Refuse macros that are not supported.

    Raises:
        ValueError: a macro is not supported; names the first.
    """
    for word in command:
        found = re.fullmatch(r"\$\{(.*)\}", word)
        if found and found[1] not in MACROS and not VARIABLE.search(word):
            choices = ", ".join(f"${{{name}}}" for name in (*MACROS, "envvar:NAME"))
            raise ValueError(f"command: {word} is not supported; choose one of {choices}")


def command_words(
    command: Sequence[str], program: str, arguments: Mapping[str, object]
) -> list[str]:
    """Return the command line of a trial.

    Args:
        command: of the sweep, with macros.
        program: replaces ${program}.
        arguments: name → value of the trial's parameters; nested ones are a mapping.
    """
    replacements = {
        "env": ["/usr/bin/env"],
        "interpreter": [sys.executable],
        "program": [program],
        "args": [f"--{name}={value}" for name, value in arguments.items()],
        "args_no_equals": [
            word for name, value in arguments.items() for word in (f"--{name}", str(value))
        ],
    }
    words: list[str] = []
    for word in command:
        text = VARIABLE.sub(lambda found: os.environ.get(found[1], found[1]), word)
        macro = text[2:-1] if text.startswith("${") and text.endswith("}") else ""
        words += replacements.get(macro, [text])
    return words
