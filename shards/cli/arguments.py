"""Command lines: one line for a mistake, and numbers that are checked."""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from shards.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuses NUL, and `--option=--`, which argparse takes for an option with an empty list."""
        args = sys.argv[1:] if args is None else args
        for argument in args:
            if "\0" in argument:
                self.error(f"argument {argument!r}: holds a NUL character")
            if argument.startswith("--") and argument.endswith("=--"):
                self.error(f"argument {argument[:-3]}: expected one argument")
        return super().parse_known_args(args, namespace)


def text(argument: str) -> str:
    """Returns an argument that is text: not every sequence of bytes that a shell passes is."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{argument!r} is no text in UTF-8") from None
    return argument


def whole_number(argument: str) -> int:
    """Returns an argument as a whole number: decimal digits of ASCII that fit into 64 bits."""
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", argument) or int(argument).bit_length() > 63:
        raise argparse.ArgumentTypeError(f"{argument!r} is no whole number of at most 64 bits")
    return int(argument)


def number(argument: str) -> float:
    """Returns an argument as a finite number."""
    try:
        value = float(argument)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and argument.isascii() and "_" not in argument):
        raise argparse.ArgumentTypeError(f"{argument!r} is no finite number")
    return value
