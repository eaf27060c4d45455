"""Words and values that nobody should give: wrong types, sizes, names, numbers of other scripts."""

import os
import random
from pathlib import Path
from typing import Any

NUMBERS = ("-1", "0", "1", "2", "3", "1e400", "-1e400", "1e-400", "1e30", "nan", "inf", "-inf")
NUMBERS += (str(2**31), str(2**63), str(2**64), "-9223372036854775809", "9" * 5000, "1.5", "0.5")
NUMBERS += ("²", "٣", "1_0", "0x10", "1,5", " 1", "1 ", "+1", "1e0", "0.0", "--1", "½")
TEXTS = ("", " ", "true", "null", "~", "[]", "{}", "[1, 2", "{a: 1}", '"', "'", "a,b", ",", ",,")
TEXTS += (
    "[" * 3000,
    "{a: " * 800,
    "&a [*a]",
    "!!python/object:os.getcwd {}",
    "ü",
    "\u202e",
    "a\0b",
)
TEXTS += (
    "two\nlines",
    "\r",
    "\x1b[2J",
    "x" * 10_000,
    "caf\udce9",
    "\ud800",
    "%s%n",
    "$HOME",
    "${x}",
)
TEXTS += ("auto", "none", "all", "test", "train", "val", "-", "--", "-h", "bus,metro", "bus,bus")
TEXTS += ("- a\n- b", "a: b: c", "!!binary x", "1:1", "2001-01-01", "<<", "@", "`", "%TAG")
PATHS = ("", ".", "..", "/", "folder", "folder/", "absent", "absent/deeper", "dangling", "loop")
PATHS += ("fifo", "secret", "closed", "locked/new", "huge", "empty", "link", "config.yaml/below")
PATHS += (
    "n" * 300,
    "n/" * 3000,
    "new\nline",
    "caf\udce9",
    "a\0b",
    "~",
    "~nobody/x",
    "ü/ß",
    "socket",
)
PATHS += ("/dev/null", "/dev/full", "/dev/zero", "/dev/stdin", "/dev/stdout", "/proc/self/mem")
PATHS += ("/proc/self/environ", "/sys/kernel", "file:///etc", "memory://x", "http://127.0.0.1:9/x")
PATHS += (
    "https://[::1",
    "s3://",
    "gs:/x",
    "zip://x::y",
    "a::b",
    "://",
    "-",
    "-x",
    "folder/../empty",
)
DOCUMENT_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    2**31,
    2**63,
    2**64,
    10**400,
    1.5,
)
DOCUMENT_VALUES += (
    float("nan"),
    float("inf"),
    -0.0,
    1e308,
    "",
    "x" * 100_000,
    "..",
    "../x",
    "/",
    "1",
)
DOCUMENT_VALUES += (
    "a\0b",
    "\ud800",
    "²",
    "two\nlines",
    [],
    {},
    [[]],
    [1],
    {"a": {}},
    ["a"],
    [None],
)
DOCUMENT_VALUES += (
    "nan",
    "data",
    "absent",
    "/etc/passwd",
    "fifo",
    "mynet:f",
    "os:getcwd",
    "é",
    [[[1]]],
)


def word(rng: random.Random, near: str = "", known: tuple[str, ...] = ()) -> str:
    """Return a word for a command line.

    Args:
        rng: decides.
        near: what would be right.
        known: words that are right elsewhere, such as those of an option's help.
    """
    roll = rng.random()
    if near and roll < 0.1:
        return _changed(rng, near)
    if known and roll < 0.3:
        return rng.choice(known)
    return rng.choice(rng.choice((NUMBERS, TEXTS, PATHS)))


def _changed(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return rng.choice(
        (
            text[:at],
            text[at:],
            text + text,
            text.upper(),
            f"{text},{text}",
            f"{text[:at]}{rng.choice(TEXTS)}{text[at:]}",
            f"{text}/",
            f"./{text}",
            f"-{text}",
        )
    )


def value(rng: random.Random, near: Any = None) -> Any:
    """Return a value for a place in a document that holds `near`."""
    if isinstance(near, bool | int | float) and rng.random() < 0.3:
        return rng.choice((near + 1, near - 1, -near, near * 1000, str(near), [near], float(near)))
    if isinstance(near, str) and near and rng.random() < 0.2:
        return _changed(rng, near)
    return rng.choice(DOCUMENT_VALUES)


def make_odd_places(folder: Path) -> None:
    """Put into a folder what paths of `PATHS` name: a pipe, links to nowhere, what cannot be read, …"""
    import socket

    (folder / "folder").mkdir()
    (folder / "folder/file").write_text("a file")
    (folder / "empty").touch()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "link").symlink_to("folder")
    os.mkfifo(folder / "fifo")
    with (folder / "huge").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "secret").write_text("nobody may read this")
    (folder / "secret").chmod(0)
    (folder / "closed").mkdir(mode=0)
    (folder / "locked").mkdir(mode=0o555)
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    os.fchdir(here)
    os.close(here)
