"""Ownership of folders: files that others made are never overwritten or removed.

A folder is written to only if it is missing, empty, or ours: it holds a file whose contents show what
made it. Only files that we are known to write are removed from it, by name; all else stays. Links are
not followed out of the folder.
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

from shards.errors import UserError
from shards.files.atomic import cannot_write, check_folder, check_name, is_temporary, sync

# Larger files are not read as marks.
_MAX_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Kind of output folder.

    Attributes:
        name: what it is called in messages, such as "a dataset".
        parts: what we write at its top level; names of folders end with a slash.
        made: returns whether the files in a folder show that we made it.
        early: names that may be there before the mark is, such as a lock.
        replaced: whether the folder itself is replaced, rather than its contents.
    """

    name: str
    parts: tuple[str, ...]
    made: Callable[[Path], bool]
    early: frozenset[str] = frozenset()
    replaced: bool = False


def claim(folder: Path, kind: Kind, option: str = "") -> None:
    """Checks that a folder may be written to; changes nothing.

    Args:
        folder: the folder, or a link to one.
        kind: what is to be written there.
        option: command-line option that named the folder, if any.

    Raises:
        UserError: the folder holds something else, the name of a part of it is taken, or it cannot be
            written.
    """
    check_name(folder, option)
    shown = f"{option} {folder}".strip()
    if kind.replaced and folder.name in ("", ".."):
        raise UserError(
            f"{shown} would be replaced as a whole by {kind.name}: give the name of the folder, or of "
            "one in it"
        )
    try:
        if not os.path.lexists(folder):
            folder.lstat()  # raises the reason if it is another than a missing file
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
        try:
            mode = (folder / name).lstat().st_mode
        except FileNotFoundError:  # another process of ours has just removed it
            continue
        right = stat.S_ISDIR(mode) if part.endswith("/") else stat.S_ISREG(mode)
        if not right:
            what = "a link" if stat.S_ISLNK(mode) else "something else"
            raise UserError(
                f"{shown}: {name} in it is {what}, which is neither followed nor replaced; move it away "
                "or name another folder"
            )


def remove(folder: Path, patterns: Iterable[str]) -> None:
    """Removes files of ours, and the subfolders that become empty.

    Args:
        folder: where to remove them.
        patterns: relative paths, such as `checkpoints/step-*/state.json`. Only regular files are
            removed, and links are not followed.
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
            with suppress(OSError):  # not empty
                Path(entry.path).rmdir()


def read_mark(path: Path) -> dict[str, object]:
    """Returns the JSON object in a regular file; empty if the file is missing or holds none."""
    try:
        if stat.S_ISREG((found := path.lstat()).st_mode) and found.st_size <= _MAX_BYTES:
            content = json.loads(path.read_bytes())
            return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        pass
    return {}


@contextmanager
def replaced_folder(folder: Path, files: Sequence[str]) -> Iterator[Path]:
    """Yields a new folder, which replaces `folder` if the block succeeds.

    Other files in the old folder are moved to the new one. The caller has claimed the folder, and no
    other process writes to it meanwhile.

    Args:
        folder: the folder to replace.
        files: names of the files that it consists of.
    """
    parent, name = folder.parent, folder.name
    parent.mkdir(parents=True, exist_ok=True)
    _recover(folder, files)
    new, old = parent / f".{name}.new-{os.getpid()}", parent / f".{name}.old-{os.getpid()}"
    new.mkdir()
    try:
        yield new
        sync(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        _dismantle(new, files)
        raise
    sync(parent)
    _dismantle(old, files, folder)


def _recover(folder: Path, files: Sequence[str]) -> None:
    """Cleans up after a process that was killed: removes its new folder, or restores the old one."""
    with os.scandir(folder.parent) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name in names:
        left = re.fullmatch(rf"\.{re.escape(folder.name)}\.(old|new)-\d+", name)
        if left and left[1] == "old" and not folder.exists():
            (folder.parent / name).rename(folder)
        elif left:
            _dismantle(folder.parent / name, files, folder)


def _dismantle(folder: Path, files: Sequence[str], heir: Path | None = None) -> None:
    """Removes a folder of ours; other files in it are moved to `heir`."""
    remove(folder, files)
    with suppress(FileNotFoundError):
        for other in sorted(folder.iterdir()):
            if heir is not None and heir.is_dir() and not os.path.lexists(heir / other.name):
                other.rename(heir / other.name)
        with suppress(OSError):  # not empty
            folder.rmdir()
