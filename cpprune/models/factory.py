"""User-defined networks: "package.module:function", found on the import path.

A model folder names its factory, and loading the model calls it if the user trusts its module (see
`cpprune.models.trust`). Only subclasses of nn.Module and functions annotated to return one are called.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from torch import nn

from shards.errors import UserError, one_line


def is_factory(name: str) -> bool:
    """Return whether a name has the form "package.module:function" rather than a family's."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def make(name: str, num_classes: int, arguments: Mapping[str, object]) -> nn.Module:
    """Call a factory: function(num_classes=K, **arguments).

    Args:
        name: "package.module:function"; the current folder is searched, too.
        num_classes: K.
        arguments: the user's keyword arguments.

    Raises:
        UserError: there is no such factory, it is not known to return a network, or it failed.
    """
    function = find(name)
    try:
        network = function(num_classes=num_classes, **arguments)
    except Exception as error:  # user code can raise anything
        raise UserError(
            f"model.factory={name}: failed with num_classes={num_classes} and model.arguments="
            f"{dict(arguments)} ({one_line(error, 300)})"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"model.factory={name}: must return a torch.nn.Module, but returned "
            f"{type(network).__name__}"
        )
    return network


def find(name: str) -> Callable[..., object]:
    """Return a factory without calling it; see `make`."""
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that it shadows no installed module
    try:
        module = import_module(module_name)
    except Exception as error:  # the import runs user code
        raise UserError(
            f"model.factory={name}: {module_name} cannot be imported ({one_line(error, 300)}); run "
            "where its file lies, or put its folder into PYTHONPATH"
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        raise UserError(f"model.factory={name}: {module_name} has no {attribute}")
    if not _makes_networks(function):
        raise UserError(
            f"model.factory={name}: is not called, since it is neither a torch.nn.Module nor a "
            "function annotated to return one: write `def ...(num_classes: int, ...) -> nn.Module:`"
        )
    assert callable(function)
    return typing.cast(Callable[..., object], function)


def _makes_networks(function: object) -> bool:
    if inspect.isfunction(function):
        function = _return_type(inspect.unwrap(function))
    return inspect.isclass(function) and issubclass(function, nn.Module)


def _return_type(function: Callable[..., object]) -> object:
    """Return a function's return annotation, without evaluating its others."""

    def only_return() -> None: ...

    annotation = getattr(function, "__annotations__", {}).get("return")
    only_return.__annotations__ = {"return": annotation}
    try:
        return typing.get_type_hints(only_return, getattr(function, "__globals__", {}))["return"]
    except Exception:  # such as a name imported under TYPE_CHECKING
        return None
