"""Strict, bounded reading of untrusted JSON and YAML.

A document is a regular file of UTF-8 text, bounded in size and depth, without duplicate keys, and with
finite numbers unless the caller allows others. `msgspec` converts it strictly to a dataclass or any
other annotated type, or reports where it differs.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec

from shards.errors import UserError

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 16 << 20  # what is read of a JSON document; in memory it is up to twenty times as large
MAX_YAML_BYTES = 256 << 10  # people write YAML by hand, and its reader takes seconds for a megabyte
MAX_DEPTH = 32
MAX_ALIASES = 1000
MAX_BITS = 63  # of an integer, without its sign

T = TypeVar("T")

# What JSON can hold; documents that are only passed on or written.
Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None


class DocumentError(ValueError):
    """Invalid document; the message says where and why, but does not name the file."""


def read_json(
    path: Path, kind: type[T], *, max_bytes: int = MAX_BYTES, nan: bool = False, remedy: str = ""
) -> T:
    """Reads a JSON file.

    Args:
        path: the file.
        kind: expected type: a dataclass, or any annotated type.
        max_bytes: largest size that is read.
        nan: whether NaN and infinities, which older versions wrote, are read as null.
        remedy: what to do if the file is unusable; ends the message.

    Raises:
        UserError: the file cannot be read, or does not hold a `kind`; the message names file and place.
    """
    data = read_bytes(path, max_bytes, remedy)
    with _named(path, remedy):
        return parse_json(data, kind, nan=nan)


def read_yaml(path: Path, kind: type[T], *, remedy: str = "") -> T:
    """Reads a YAML file; see `read_json`. An empty file is None."""
    data = read_bytes(path, MAX_YAML_BYTES, remedy)
    with _named(path, remedy):
        return parse_yaml(data, kind)


def read_bytes(path: Path, max_bytes: int = MAX_BYTES, remedy: str = "") -> bytes:
    """Reads a whole file.

    Raises:
        UserError: it cannot be read, is not a regular file, or has more than `max_bytes`.
    """
    with _named(path, remedy):
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for a writer.
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise DocumentError(f"cannot be read ({_reason(error)})") from None
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
                raise DocumentError(f"cannot be read (it is {what}, not a file)")
            if status.st_size > max_bytes:
                raise DocumentError(f"has {status.st_size:,} bytes; at most {max_bytes:,} are read")
            with open(file, "rb", closefd=False) as opened:
                data = opened.read()
        except OSError as error:
            raise DocumentError(f"cannot be read ({_reason(error)})") from None
        finally:
            os.close(file)
    return data


def parse_json(data: bytes | str, kind: type[T], *, nan: bool = False) -> T:
    """Parses JSON as `kind`.

    Nothing is coerced: "1" is not a number and 1.0 not an integer; but an integer is a valid float.

    Raises:
        DocumentError: the text is not JSON, or not a `kind`; the message says where and why.
    """
    try:
        document = json.loads(
            _text(data),
            object_pairs_hook=_unique,
            parse_constant=_null if nan else _refuse_constant,
        )
    except RecursionError:
        raise DocumentError(f"is nested more than {MAX_DEPTH} deep") from None
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(f"is not valid JSON ({_one_line(error)})") from None
    return _checked(document, kind, len(data))


def parse_yaml(data: bytes | str, kind: type[T]) -> T:
    """Parses YAML as `kind`; see `parse_json`."""
    import yaml

    try:
        document = yaml.load(_text(data), _yaml_loader())  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise DocumentError(f"is nested more than {MAX_DEPTH} deep") from None
    except DocumentError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DocumentError(f"is not valid YAML ({_one_line(error)})") from None
    return _checked(document, kind, MAX_YAML_BYTES)


def json_lines(data: bytes, kind: type[T]) -> list[T | DocumentError]:
    """Parses JSON lines: a list of values, or of the errors of invalid lines; NaN is read as null.

    An incomplete last line, which a killed process leaves, is left out.
    """
    found: list[T | DocumentError] = []
    for line in data.split(b"\n")[:-1]:
        try:
            found.append(parse_json(line, kind, nan=True))
        except DocumentError as error:
            found.append(error)
    return found


def typed(document: object, kind: type[T]) -> T:
    """Converts a parsed document, or a part of one, to `kind`.

    Raises:
        DocumentError: it is not a `kind`; the message says where and why.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise DocumentError(_place(str(error))) from None


def _checked(document: object, kind: type[T], max_values: int) -> T:
    _check(document, max_values)
    return typed(document, kind)


def _check(document: object, max_values: int) -> None:
    """Raises DocumentError unless depth, size, numbers and strings are within bounds."""
    below: list[Iterator[object]] = [iter((document,))]
    values = 0
    while below:
        for value in below[-1]:
            values += 1
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, int):
                if value.bit_length() > MAX_BITS:
                    raise DocumentError("holds an integer that does not fit in 64 bits")
            elif isinstance(value, float):
                if not math.isfinite(value):
                    raise DocumentError(f"holds {value}, which is not a finite number")
            elif isinstance(value, (dict, list, set, tuple)):
                if len(below) > MAX_DEPTH:
                    raise DocumentError(f"is nested more than {MAX_DEPTH} deep")
                inner = chain(value, value.values()) if isinstance(value, dict) else value
                below.append(iter(inner))
                break
            if values > max_values:
                raise DocumentError("holds too many values, counting those that aliases repeat")
        else:
            below.pop()


def _check_text(text: str) -> None:
    if "\0" in text:
        raise DocumentError(f"holds a NUL character, in {_short(text)}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DocumentError(f"holds half a character, in {_short(text)}") from None


def _text(data: bytes | str) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"is not UTF-8 text (byte {error.start})") from None


def _null(name: str) -> None:
    return None


def _refuse_constant(name: str) -> None:
    raise DocumentError(f"holds {name}, which is not a finite number")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DocumentError(f"holds the key {_short(twice)} twice")
    return found


@cache
def _yaml_loader() -> "type[yaml.SafeLoader]":
    """Returns PyYAML's safe loader with bounds, which refuses duplicate keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        aliases = merged = depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                self.aliases += 1
                if self.aliases > MAX_ALIASES:
                    raise DocumentError(f"holds more than {MAX_ALIASES:,} aliases")
            self.depth += 1
            if self.depth > MAX_DEPTH + 1:
                raise DocumentError(f"is nested more than {MAX_DEPTH} deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            _unique([(key.value, None) for key, _ in node.value if key.id == "scalar"])
            return node

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            super().flatten_mapping(node)
            self.merged += len(node.value)
            if self.merged > MAX_YAML_BYTES:  # `<<` may repeat what it merges
                raise DocumentError("merges too much")

    return Loader


def _place(message: str) -> str:
    """Rewrites msgspec's message as `shards[3].bytes: expected an int, got a str`."""
    text, _, place = message.replace("`", "").partition(" - at ")
    place = re.sub(r"^(key in )?\$\.?", "", place)
    text = text[:1].lower() + text[1:]
    return f"{place}: {text}" if place else text


class _named:  # noqa: N801 - reads as the statement it is used in
    """Context manager that turns a DocumentError into a UserError that names the file."""

    def __init__(self, path: Path, remedy: str) -> None:
        self.path, self.remedy = path, remedy

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, DocumentError):
            remedy = f"; {self.remedy}" if self.remedy else ""
            raise UserError(f"{self.path}: {error}{remedy}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _short(text: object) -> str:
    shown = repr(str(text)[:40])
    return shown if len(str(text)) <= 40 else f"{shown} …"


def to_json(value: object, indent: int | None = None) -> str:
    """Serialises to strict JSON; NaN and infinities, which JSON does not have, become null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_with_null(value), indent=indent, allow_nan=False)


def _with_null(value: object) -> object:
    if isinstance(value, dict):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
