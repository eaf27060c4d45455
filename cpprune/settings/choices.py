"""Which values a setting may take, read off its type."""

from __future__ import annotations

from collections.abc import Collection
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

from shards.suggest import did_you_mean


def hints(kind: object) -> dict[str, object]:
    """Return the resolved types of a dataclass's fields."""
    return get_type_hints(kind)


def choices_of(hint: object) -> tuple[str, ...]:
    """Return the values of `Literal["a", "b"]`, or of it with `| None`; none for another type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((get_args(part) for part in get_args(hint) if get_origin(part) is Literal), ())


def wrong_choice(key: str, value: object, choices: Collection[str]) -> str:
    """Return the message for a value that is none of a key's choices."""
    hint = did_you_mean(str(value), choices)
    return f"{key}={value!r}: choose one of {', '.join(choices)}{hint}"


def check_choices(config: object, room: str = "") -> None:
    """Check every field of a dataclass whose type is a `Literal`.

    Args:
        config: the dataclass.
        room: what its keys begin with, such as "optim".

    Raises:
        ValueError: another value; the message names the key and what is allowed.
    """
    for name, hint in hints(type(config)).items():
        value, choices = getattr(config, name), choices_of(hint)
        left_out = value is None and NoneType in get_args(hint)
        if choices and value not in choices and not left_out:
            raise ValueError(wrong_choice(f"{room}.{name}" if room else name, value, choices))
