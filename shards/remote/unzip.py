"""Unpacking untrusted zip files: nothing outside the folder, no links, no zip bombs."""

import shutil
import stat
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

from shards.errors import UserError

_ENCRYPTED = 0x1


def unpack(archive: Path, out: Path, top: str) -> dict[str, int]:
    """Unpacks a zip file; all names are checked before anything is written.

    Args:
        archive: the zip file.
        out: an existing folder.
        top: leading folder to strip from the names.

    Returns:
        Path relative to `out` and size in bytes of each file.

    Raises:
        UserError: the archive is damaged, holds unsafe names, or does not fit on the disk.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [member for member in zipped.infolist() if not member.is_dir()]
            places = [_place(member, archive, top) for member in members]
            _refuse_duplicates(archive, places)
            sizes = {place: member.file_size for place, member in zip(places, members, strict=True)}
            _refuse_bomb(archive, out, sizes)
            for place, member in zip(places, members, strict=True):
                target = out / place
                _refuse_links(out, target)
                target.parent.mkdir(parents=True, exist_ok=True)
                # zipfile stops at the size in the directory and verifies the CRC.
                with zipped.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from error
    return sizes


def _place(member: zipfile.ZipInfo, archive: Path, top: str) -> str:
    """Returns the path of a member relative to the output folder."""
    name = member.filename
    path = PurePosixPath(name)
    kind = stat.S_IFMT(member.external_attr >> 16)
    refused = {
        "is not a name": not path.parts,
        "leads out of the folder": path.is_absolute() or ".." in path.parts or "\\" in name,
        "is a link or a device": kind not in (0, stat.S_IFREG),
        "is encrypted": bool(member.flag_bits & _ENCRYPTED),
    }
    for reason, holds in refused.items():
        if holds:
            raise UserError(f"{archive}: {name!r} {reason}; nothing was unpacked")
    parts = path.parts[1:] if path.parts[0] == top else path.parts
    return "/".join(parts)


def _refuse_duplicates(archive: Path, places: list[str]) -> None:
    """Refuses names that occur twice: both would be written, and one counted."""
    twice = [place for place, times in Counter(places).items() if times > 1]
    if twice:
        raise UserError(f"{archive}: {twice[0]!r} occurs twice; nothing was unpacked")


def _refuse_links(out: Path, target: Path) -> None:
    """Refuses to write through links that already lie in the folder: they may lead out of it."""
    for path in (target, *target.parents):
        if path == out:
            return
        if path.is_symlink():
            raise UserError(f"{path} is a link, which is not written through; move it away")


def _refuse_bomb(archive: Path, out: Path, sizes: dict[str, int]) -> None:
    """Refuses archives that unpack to more than the disk has room for."""
    there = sum((out / name).stat().st_size for name in sizes if (out / name).is_file())
    needed, free = sum(sizes.values()) - there, shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{archive} unpacks to {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free in {out}: "
            "make room and start again"
        )
