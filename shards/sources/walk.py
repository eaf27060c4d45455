"""All files below a folder: those that are used, and those that are left aside, counted by reason."""

import os
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from shards.audio.formats import DECODERS, has_ffmpeg
from shards.errors import UserError
from shards.sources.names import printable

LONGEST_ENDING = 12
HIDDEN = "hidden, not looked into"
FOLLOWED = "links, followed"
BACK = "links that lead back, not followed"
NEEDS_FFMPEG = "needs ffmpeg, which is not installed"
NO_CLASS = "in no class folder"
NO_SPLIT = "in no split folder"


@dataclass
class Found:
    """What is below a folder.

    Attributes:
        files: the files with an ending that is wanted, in a fixed order.
        aside: reason to number of the other files.
        folders: reason to number of sub-folders that were not just listed.
    """

    files: list[Path] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Found") -> None:
        """Adds the counts of another folder."""
        self.aside += other.aside
        self.folders += other.folders


def endings() -> frozenset[str]:
    """Returns the file name endings, without a dot, of what can be decoded here."""
    there = {"libsndfile", "ffmpeg"} if has_ffmpeg() else {"libsndfile"}
    return frozenset(ending for ending, decoder in DECODERS.items() if decoder in there)


def walk(folder: Path, known: frozenset[str]) -> Found:
    """Lists a folder to any depth; a folder that links lead to is listed once, and none above it.

    Raises:
        UserError: if a folder cannot be listed.
    """
    found = Found()
    seen = {_identity(above) for above in folder.resolve().parents}
    links = deque([folder])
    while links:
        link = links.popleft()
        if _identity(link) in seen:
            found.folders[BACK] += 1
            continue
        found.folders[FOLLOWED] += link != folder
        links.extend(_list(link, known, seen, found))
    found.files.sort()
    return found


def folders(folder: Path) -> list[str]:
    """Returns the names of the sub-folders that are not hidden, links included.

    Raises:
        UserError: if the folder cannot be listed.
    """
    return sorted(
        entry.name
        for entry in _listed(folder)
        if _is_folder(entry) and not entry.name.startswith(".")
    )


def beside(folder: Path, known: frozenset[str]) -> Found:
    """Returns what lies in a folder itself and not in its sub-folders: nothing of it is used."""
    found = Found()
    for entry in _listed(folder):
        if _is_folder(entry):
            found.folders[HIDDEN] += entry.name.startswith(".")
        else:
            found.aside[left_aside(entry.name, known) or NO_CLASS] += 1
    return found


def left_aside(name: str, known: frozenset[str]) -> str:
    """Returns why a file is not used, by its name alone, or "" if it is."""
    if name.startswith("."):
        return "hidden"
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    if ending in known:
        return ""
    return f"{NEEDS_FFMPEG if ending in DECODERS else 'not audio'} ({shown_ending(ending)})"


def shown_ending(ending: str) -> str:
    """Returns an ending as counts show it."""
    return f".{printable(ending)}" if 0 < len(ending) <= LONGEST_ENDING else "no ending"


def _list(
    folder: Path, known: frozenset[str], seen: set[tuple[int, int]], found: Found
) -> list[Path]:
    """Adds the files of a folder and of those below it; returns the links to other folders."""
    links: list[Path] = []
    below = [folder]
    while below:
        here = below.pop()
        seen.add(_identity(here))
        for entry in _listed(here):
            if not _is_folder(entry):
                reason = left_aside(entry.name, known)
                if reason:
                    found.aside[reason] += 1
                else:
                    found.files.append(here / entry.name)
            elif entry.name.startswith("."):
                found.folders[HIDDEN] += 1
            else:
                (links if entry.is_symlink() else below).append(here / entry.name)
    return sorted(links)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads nowhere: whoever opens it says so


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{printable(str(folder))} cannot be listed: {error.strerror}") from error
