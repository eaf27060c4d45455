"""Networks of the user's own: "package.module:function", found on the import path.

A model folder names its factory, so loading one calls it, where the user trusts its module (see
`cpprune.models.trust`). Only what says of itself that it makes networks is called: subclasses of
nn.Module, and functions annotated to return one.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from shards.errors import InputError


def is_factory(name: str) -> bool:
    """Return whether a network's name is "package.module:function" rather than a family's."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def make(name: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Call a factory: function(num_classes=K, **arguments).

    Args:
        name: "package.module:function"; modules in the current folder are found, too.
        num_classes: K.
        arguments: keyword arguments of the user's.

    Raises:
        InputError: there is none of this name, it is not known to make networks, or it failed.
    """
    function = find(name)
    try:
        network = function(num_classes=num_classes, **arguments)
    except Exception as error:  # code that is not ours fails in any way
        raise InputError(
            f"model.factory={name}: failed with num_classes={num_classes} and model.arguments="
            f"{dict(arguments)} ({_one_line(error)})"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"model.factory={name}: must return a torch.nn.Module, but returned "
            f"{type(network).__name__}"
        )
    return network


def find(name: str) -> Callable[..., Any]:
    """Return a factory without calling it; see `make`."""
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that it hides nothing that is installed
    try:
        module = import_module(module_name)
    except Exception as error:  # the import runs code that is not ours
        raise InputError(
            f"model.factory={name}: {module_name} cannot be imported ({_one_line(error)}); run where "
            "its file lies, or put its folder into PYTHONPATH"
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        raise InputError(f"model.factory={name}: {module_name} has no {attribute}")
    if not _makes_networks(function):
        raise InputError(
            f"model.factory={name}: is not called, since it is neither a torch.nn.Module nor a "
            "function annotated to return one: write `def ...(num_classes: int, ...) -> nn.Module:`"
        )
    assert callable(function)
    return typing.cast(Callable[..., Any], function)


def _makes_networks(function: object) -> bool:
    if inspect.isfunction(function):
        function = _return_type(inspect.unwrap(function))
    return inspect.isclass(function) and issubclass(function, nn.Module)


def _return_type(function: Callable[..., Any]) -> object:
    """Return what a function is annotated to return; only that annotation is evaluated."""

    def only_return() -> None: ...

    annotation = getattr(function, "__annotations__", {}).get("return")
    only_return.__annotations__ = {"return": annotation}
    try:
        return typing.get_type_hints(only_return, getattr(function, "__globals__", {}))["return"]
    except Exception:  # a name that is known to type checkers only, say
        return None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
