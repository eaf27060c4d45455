"""Whose a folder is. Nothing is written into, and nothing removed from, what others made.

A folder is written into only where it is absent, empty, or marked as ours: by a file that says what
made it, whose contents are looked at. What is removed is only what we are known to have written there,
name by name; anything else that lies in a folder of ours stays. Links are not followed out of it.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.files.atomic import cannot_write, check_folder, check_name, is_temporary, sync

# No mark of ours is larger than this.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of folder that we write.

    Attributes:
        name: what it is called, such as "a dataset".
        parts: what we write at its top; the name of a folder ends with a slash.
        made: says whether a folder's files show that we made it.
        early: what may lie there before any mark, such as a lock.
        replaced: whether the folder itself is replaced, and not only what is in it.
    """

    name: str
    parts: tuple[str, ...]
    made: Callable[[Path], bool]
    early: frozenset[str] = frozenset()
    replaced: bool = False


def claim(folder: Path, kind: Kind, option: str = "") -> None:
    """Checks that a folder may be written into. Touches nothing.

    Args:
        folder: which one; a link to a folder is as good.
        kind: what is to be written.
        option: that named it, if one did.

    Raises:
        UserError: it holds something else, something else has the name of a part of it, or it cannot
            be written.
    """
    check_name(folder, option)
    shown = f"{option} {folder}".strip()
    try:
        if not os.path.lexists(folder):
            folder.lstat()  # says why, if it is not for being absent
        if folder.is_symlink() and (kind.replaced or not folder.exists()):
            raise UserError(f"{shown} is a link; name the folder itself, or another")
        if not folder.is_dir():
            raise UserError(f"{shown} is a file; name a folder")
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise cannot_write(folder, error, option) from None
    others = [name for name in names if not _is_early(name, kind)]
    if others and not kind.made(folder):
        raise UserError(
            f"{shown} is not {kind.name} and not empty (it has {others[0]}); name another folder, or an "
            "empty one"
        )
    _check_parts(folder, kind, names, shown)
    try:
        check_folder(folder.parent if kind.replaced else folder)
    except OSError as error:
        raise cannot_write(folder, error, option) from None


def _is_early(name: str, kind: Kind) -> bool:
    return name in kind.early or any(is_temporary(name, part) for part in kind.parts)


def _check_parts(folder: Path, kind: Kind, names: Sequence[str], shown: str) -> None:
    there = set(names)
    for part in kind.parts:
        name = part.rstrip("/")
        if name not in there:
            continue
        mode = (folder / name).lstat().st_mode
        right = stat.S_ISDIR(mode) if part.endswith("/") else stat.S_ISREG(mode)
        if not right:
            what = "a link" if stat.S_ISLNK(mode) else "something else"
            raise UserError(
                f"{shown}: {name} in it is {what}, which is neither followed nor replaced; move it away "
                "or name another folder"
            )


def remove(folder: Path, patterns: Iterable[str]) -> None:
    """Removes files of ours, and the folders between that become empty.

    Args:
        folder: below which they lie.
        patterns: of their paths, such as `checkpoints/step-*/state.json`. Only regular files are
            removed, and only folders are gone through: a link is left where it is.
    """
    for pattern in patterns:
        _remove(folder, pattern.split("/"))


def _remove(folder: Path, parts: Sequence[str]) -> None:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if fnmatchcase(entry.name, parts[0])]
    except FileNotFoundError:
        return
    for entry in found:
        if len(parts) == 1:
            if entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink()
        elif entry.is_dir(follow_symlinks=False):
            _remove(Path(entry.path), parts[1:])
            with suppress(OSError):  # something else is in it
                Path(entry.path).rmdir()


def read_mark(path: Path) -> dict[str, Any]:
    """Returns the JSON object that a regular file holds; empty if there is no such file or object."""
    try:
        if stat.S_ISREG((found := path.lstat()).st_mode) and found.st_size <= _MOST_BYTES:
            content = json.loads(path.read_bytes())
            return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        pass
    return {}


@contextmanager
def replaced_folder(folder: Path, files: Sequence[str]) -> Iterator[Path]:
    """Gives a new folder, which takes the place of an older one when all went well.

    What else lies in the older one is kept: it moves over. The caller has claimed the folder, and no
    other process writes it meanwhile.

    Args:
        folder: to be written.
        files: the names of those that it consists of.

    """
    parent, name = folder.parent, folder.name
    parent.mkdir(parents=True, exist_ok=True)
    _settle(folder, files)
    new, old = parent / f".{name}.new-{os.getpid()}", parent / f".{name}.old-{os.getpid()}"
    new.mkdir()
    try:
        yield new
        sync(new)
    except BaseException:
        _take_apart(new, files)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    sync(parent)
    _take_apart(old, files, folder)


def _settle(folder: Path, files: Sequence[str]) -> None:
    """Takes away what a process that was killed has left, or brings back what it had moved."""
    with os.scandir(folder.parent) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name in names:
        left = re.fullmatch(rf"\.{re.escape(folder.name)}\.(old|new)-\d+", name)
        if left and left[1] == "old" and not folder.exists():
            (folder.parent / name).rename(folder)
        elif left:
            _take_apart(folder.parent / name, files, folder)


def _take_apart(folder: Path, files: Sequence[str], heir: Path | None = None) -> None:
    """Removes a folder of ours; what else lies in it moves to the heir."""
    remove(folder, files)
    with suppress(FileNotFoundError):
        for other in sorted(folder.iterdir()):
            if heir is not None and heir.is_dir() and not os.path.lexists(heir / other.name):
                other.rename(heir / other.name)
        with suppress(OSError):  # something else is still in it
            folder.rmdir()
