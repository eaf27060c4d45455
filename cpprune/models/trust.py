"""Trusted modules: only their code is imported when a model folder names it.

A model folder is data, and may come from anyone. If it names "package.module:function" as its network,
that is imported only if the user trusts the module: by `model.factory` in a configuration, by --trust,
by CPPRUNE_TRUST in the environment, or by `cpprune.load(folder, trust=[…])`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shards.errors import UserError

VARIABLE = "CPPRUNE_TRUST"  # inherited by child processes
OPTION = "--trust"
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*", re.ASCII)

_named_by_settings: set[str] = set()


class UntrustedCodeError(UserError):
    """A model folder names code that the user does not trust; the message says how to trust it."""


@contextmanager
def trusting(argv: Sequence[str]) -> Iterator[list[str]]:
    """Context that trusts the modules of --trust until it ends.

    Args:
        argv: words of a command line; those after -- are kept as they are.

    Yields:
        The words without --trust and its values.

    Raises:
        UserError: --trust without a value, or with a value that is not a list of modules.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    rest: list[str] = []
    names: list[str] = []
    words = iter(argv[:end])
    for word in words:
        option, equals, value = word.partition("=")
        if option != OPTION:
            rest.append(word)
        else:
            names += module_names(value if equals else next(words, ""), OPTION)
    before, settings = os.environ.get(VARIABLE), set(_named_by_settings)
    if names:
        os.environ[VARIABLE] = ",".join([*filter(None, [before]), *names])
    try:
        yield [*rest, *argv[end:]]
    finally:
        _named_by_settings.clear()
        _named_by_settings.update(settings)
        if names and before is None:
            del os.environ[VARIABLE]
        elif names and before is not None:
            os.environ[VARIABLE] = before


def module_names(text: str, given_as: str) -> list[str]:
    """Return the modules of a comma-separated list.

    Raises:
        UserError: one of them is not a module's name.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not MODULE.fullmatch(name):
            raise UserError(
                f"{given_as} {text!r}: must name modules, separated by commas, such as my_nets"
            )
    return names


def trust_factory(name: str) -> None:
    """Trust the module of the factory in the user's own configuration."""
    _named_by_settings.add(name.partition(":")[0])


def require_trust(name: str, file: Path, also: Iterable[str] = ()) -> None:
    """Raise UntrustedCodeError unless the user trusts the module of a factory that a file names.

    Args:
        name: "package.module:function".
        file: the file that names it.
        also: trusted modules besides those of the configuration and the environment. A trusted package
            includes its submodules.
    """
    module = name.partition(":")[0]
    environment = os.environ.get(VARIABLE, "")
    known = {*_named_by_settings, *([also] if isinstance(also, str) else also)}
    if environment.strip():
        known |= set(module_names(environment, VARIABLE))
    if not any(f"{module}.".startswith(f"{package}.") for package in known):
        raise UntrustedCodeError(
            f"{file}: its network is made by {name}, so loading it runs code of {module}: if you trust "
            f"that, add {OPTION} {module}, or set {VARIABLE}={module} (in Python: trust=[{module!r}])"
        )
