"""The registry of sources: a module of `shards.sources` adds one with `@source`."""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import shards.sources

if TYPE_CHECKING:
    from shards.build.options import BuildOptions
    from shards.sources.source import Source

Read = Callable[["BuildOptions"], "Source"]
Check = Callable[["BuildOptions"], None]


@dataclass(frozen=True, kw_only=True)
class SourceKind:
    """A kind of dataset that can be built from.

    Attributes:
        name: on the command line.
        help: what `--source` is, in one line.
        read: lists the clips. No audio is decoded.
        options: fields of `BuildOptions` that only the sources that name them understand.
        check: raises UserError for options that do not suit it, before anything is read.
        walks_folder: all audio below `--source` is used, so that `--out` must not lie in it.
    """

    name: str
    help: str
    read: Read
    options: frozenset[str]
    check: Check | None
    walks_folder: bool


_registered: dict[str, SourceKind] = {}


def source(
    name: str,
    *,
    help: str,  # noqa: A002 (argparse's name for it)
    options: tuple[str, ...] = (),
    check: Check | None = None,
    walks_folder: bool = False,
) -> Callable[[Read], Read]:
    """Registers the decorated function as the reader of a kind of source; see `SourceKind`."""

    def register(read: Read) -> Read:
        _registered[name] = SourceKind(
            name=name,
            help=help,
            read=read,
            options=frozenset(options),
            check=check,
            walks_folder=walks_folder,
        )
        return read

    return register


@cache
def source_kinds() -> Mapping[str, SourceKind]:
    """Returns all kinds of sources by name. Imports the modules of `shards.sources`, which are light."""
    for module in pkgutil.iter_modules(shards.sources.__path__, "shards.sources."):
        import_module(module.name)
    return dict(sorted(_registered.items()))
