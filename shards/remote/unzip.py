"""Unpacking an archive that is not trusted: nothing leaves the folder, no links, no flood."""

import shutil
import stat
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

from shards.errors import UserError

_ENCRYPTED = 0x1


def unpack(archive: Path, out: Path, top: str) -> dict[str, int]:
    """Unpacks a zip file; all its names are looked at before anything is written.

    Args:
        archive: the zip file.
        out: an existing folder.
        top: a folder at the beginning of names that is left out.

    Returns:
        The files, relative to `out`, and their bytes.

    Raises:
        UserError: it is damaged, holds what does not belong in it, or more than fits on the disk.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [member for member in zipped.infolist() if not member.is_dir()]
            places = [_place(member, archive, top) for member in members]
            _refuse_twins(archive, places)
            sizes = {place: member.file_size for place, member in zip(places, members, strict=True)}
            _refuse_flood(archive, out, sizes)
            for place, member in zip(places, members, strict=True):
                target = out / place
                _refuse_links(out, target)
                target.parent.mkdir(parents=True, exist_ok=True)
                # Never more than the size that the archive names; its crc32 is checked.
                with zipped.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from error
    return sizes


def _place(member: zipfile.ZipInfo, archive: Path, top: str) -> str:
    """Returns where a member goes."""
    name = member.filename
    path = PurePosixPath(name)
    kind = stat.S_IFMT(member.external_attr >> 16)
    refused = {
        "is no name": not path.parts,
        "leads out of the folder": path.is_absolute() or ".." in path.parts or "\\" in name,
        "is a link or a device": kind not in (0, stat.S_IFREG),
        "is encrypted": bool(member.flag_bits & _ENCRYPTED),
    }
    for reason, holds in refused.items():
        if holds:
            raise UserError(f"{archive}: {name!r} {reason}; nothing was unpacked")
    parts = path.parts[1:] if path.parts[0] == top else path.parts
    return "/".join(parts)


def _refuse_twins(archive: Path, places: list[str]) -> None:
    """What is there twice would be written twice, and counted once."""
    twice = [place for place, times in Counter(places).items() if times > 1]
    if twice:
        raise UserError(f"{archive}: {twice[0]!r} is there twice; nothing was unpacked")


def _refuse_links(out: Path, target: Path) -> None:
    """A link that lies in the folder already may lead out of it."""
    for path in (target, *target.parents):
        if path == out:
            return
        if path.is_symlink():
            raise UserError(f"{path} is a link, which is not written through; move it away")


def _refuse_flood(archive: Path, out: Path, sizes: dict[str, int]) -> None:
    there = sum((out / name).stat().st_size for name in sizes if (out / name).is_file())
    needed, free = sum(sizes.values()) - there, shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{archive} unpacks to {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free in {out}: "
            "make room and start again"
        )
