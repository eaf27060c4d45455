"""Downloading public datasets by name: resumable, verified by MD5, unpacked."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.credentials import file_in
from shards.errors import UserError
from shards.files.atomic import publish, replace_file, writing
from shards.files.documents import read_json
from shards.files.locks import locked
from shards.files.ownership import Kind, claim, read_mark
from shards.progress import progress
from shards.remote.http import fetch, file_size, remote_size
from shards.remote.unzip import unpack

# Folder of unfinished files, and of records of unpacked archives.
WORK = ".download"
_MB = 10**6
# Limits in bytes: of an archive beyond its unpacked files, and of a line of a list.
_MAX_PACKED = 100 * _MB
_MAX_LINE = 1024


def _is_download(folder: Path) -> bool:
    """Returns whether a folder has a work folder that holds only what a download writes."""
    work = folder / WORK
    names = [path.name for path in work.iterdir()] if work.is_dir() else []
    records = [name for name in names if name.endswith(".json")]
    return (
        "lock" in names
        and all(name == "lock" or name.endswith((".part", ".json", ".tmp")) for name in names)
        and all({"md5", "files"} <= read_mark(work / name).keys() for name in records)
    )


DOWNLOAD = Kind(name="a download", parts=(f"{WORK}/",), made=_is_download)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """File to download; a .zip is unpacked and removed.

    Attributes:
        name: file name on disk.
        url: URL of the file.
        max_bytes: largest size that is accepted.
        md5: expected MD5; None if it is not known.
        lines: expected number of lines with the header, for a list whose MD5 is not known.
    """

    name: str
    url: str
    max_bytes: int
    md5: str | None = None
    lines: int | None = None

    @property
    def packed(self) -> bool:
        """Whether the file is an archive to unpack."""
        return self.name.endswith(".zip")

    def fault(self, path: Path) -> str | None:
        """Returns what is wrong with the downloaded file, or None."""
        if self.lines is not None:
            found = path.read_bytes().count(b"\n")
            return None if found == self.lines else f"expected {self.lines} lines, found {found}"
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return None if md5 == self.md5 else f"expected md5 {self.md5}, found {md5}"


@dataclass(frozen=True, kw_only=True)
class RemoteDataset:
    """Published dataset.

    Attributes:
        title: name of the dataset.
        licence: its terms, and where they are published.
        url: URL of a file, with {name} for its name.
        md5: MD5 of each file.
        top: leading folder of all names in the archives.
        bytes: total size of the unpacked files.
        lists_url: URL of the list of a training subset, with {name} for its name.
        lists: number of clips of the training subset of each percentage.
    """

    title: str
    licence: str
    url: str
    md5: dict[str, str]
    top: str
    bytes: int
    lists_url: str
    lists: dict[int, int]

    def files(self, splits: Sequence[int], mirror: str | None) -> list[RemoteFile]:
        """Returns the files to download.

        Args:
            splits: percentages, keys of `lists`.
            mirror: URL of a folder with all files, used instead of `url` and `lists_url`.

        Raises:
            UserError: there is no such subset, or the mirror is not an http(s) URL.
        """
        if mirror is not None and not mirror.startswith(("http://", "https://")):
            raise UserError(f"--mirror {mirror}: give a URL that begins with https:// or http://")
        for percent in splits:
            if percent not in self.lists:
                known = ", ".join(map(str, self.lists))
                raise UserError(f"--splits {percent}: there are subsets of {known} percent")
        own = file_in(mirror, "{name}") if mirror else None
        archives = [
            RemoteFile(
                name=name,
                url=(own or self.url).replace("{name}", name),
                max_bytes=_MAX_PACKED + self.bytes,
                md5=md5,
            )
            for name, md5 in self.md5.items()
        ]
        names = {f"split{percent}.csv": self.lists[percent] for percent in splits}
        lists = [
            RemoteFile(
                name=name,
                url=(own or self.lists_url).replace("{name}", name),
                max_bytes=_MAX_LINE * (clips + 1),
                lines=clips + 1,
            )
            for name, clips in names.items()
        ]
        return archives + lists


_TAU2022 = "TAU-urban-acoustic-scenes-2022-mobile-development"
_TAU2022_AUDIO = [
    "8be14bdbd844481dce059ab31fbd2239",
    "e821abda49b069248bb75eab39df7575",
    "9c7897f78bb42ca0008936daddf3f8f3",
    "53ec3e37c0fc0be75f53c5abbc5300b8",
    "528422c33c5d10263203d2c61cb1f3be",
    "4759a9465c903e13e57d5e82e791fc28",
    "6d545fc83a55a17856a9ccc1ac9aff6b",
    "3a2916a9b5d3f43cc7a22a62b180b0d9",
    "071f664c86639ad730f7be4e3c39d886",
    "e0839d019e9b77ecbcbb0eff85965530",
    "fc60f1c83726be3963ae14fbcb95eeb4",
    "02246547f86c0a814dc63ec65d7033bb",
    "88ae9ef884665140d1572d8061725e00",
    "c3f400d74ae90e5190dc518cde43de47",
    "85594c6fe4f91c10aa2a410f748103b8",
    "6e2df8438c69f6789414aeba8cbad9d8",
]
DATASETS = {
    "tau2022": RemoteDataset(
        title="TAU Urban Acoustic Scenes 2022 Mobile, development dataset",
        licence="academic, non-commercial use only: https://zenodo.org/records/6337421",
        url="https://zenodo.org/records/6337421/files/{name}?download=1",
        # The small files that the rest needs come first.
        md5={
            f"{_TAU2022}.doc.zip": "9c4f610bdb5d3e3e72a17d393a26452a",
            f"{_TAU2022}.meta.zip": "419b6ff6570f1030730352dc80cd8d15",
            **{
                f"{_TAU2022}.audio.{number}.zip": md5
                for number, md5 in enumerate(_TAU2022_AUDIO, start=1)
            },
        },
        top=_TAU2022,
        bytes=230_350 * 132_344,
        lists_url="https://github.com/CPJKU/dcase2024_task1_baseline/releases/download/files/{name}",
        lists={5: 6980, 10: 13960, 25: 34900, 50: 69800, 100: 139620},
    )
}


def download(dataset: RemoteDataset, files: Sequence[RemoteFile], out: Path) -> list[str]:
    """Downloads the missing files of a dataset; after an interruption, the same call resumes.

    Args:
        dataset: the dataset.
        files: files of it to download.
        out: folder of the unpacked dataset.

    Returns:
        Names of the files that were downloaded.

    Raises:
        UserError: a file is not available, or damaged twice, or the disk is too small.
    """
    claim(out, DOWNLOAD, "--out")
    work = out / WORK
    busy = f"{out}: another download is at work there"
    # The lock file stays: it identifies the folder as a download.
    with locked(work / "lock", busy, keep=True), writing(out, "--out"):
        missing = [file for file in files if not _is_there(file, out)]
        sizes = [remote_size(file.url) or 0 for file in missing]
        have = [file_size(work / f"{file.name}.part") for file in missing]
        left = [max(size - part, 0) for size, part in zip(sizes, have, strict=True)]
        if any(file.packed for file in missing):
            _refuse_small_disk(dataset, out, max(left))
        with progress("Fetching, MB", -(-sum(left) // _MB)) as advance:
            megabytes = _Megabytes(advance)
            for file in missing:
                _fetch_checked(file, work / f"{file.name}.part", megabytes)
                _put_in_place(file, out, dataset.top)
    return [file.name for file in missing]


class _Megabytes:
    """Callback that counts bytes and advances a progress bar by whole megabytes."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.bytes, self.shown = advance, 0, 0

    def __call__(self, change: int) -> None:
        self.bytes += change
        whole = self.bytes // _MB
        if whole != self.shown:
            self.advance(whole - self.shown)
            self.shown = whole


def _record(file: RemoteFile, out: Path) -> Path:
    return out / WORK / f"{file.name}.json"


def _is_there(file: RemoteFile, out: Path) -> bool:
    """Returns whether a file was downloaded before, and all that it held is still there."""
    if not file.packed:
        return (out / file.name).is_file() and file.fault(out / file.name) is None
    if not (record := _record(file, out)).is_file():
        return False
    try:
        unpacked = read_json(record, _Unpacked)
    except UserError:
        return False
    return unpacked.md5 == file.md5 and all(
        file_size(out / name) == size for name, size in unpacked.files.items()
    )


@dataclass(frozen=True)
class _Unpacked:
    """Record of an unpacked archive: its MD5, and the size of each file."""

    md5: str
    files: dict[str, int]


def _refuse_small_disk(dataset: RemoteDataset, out: Path, archive: int) -> None:
    """Refuses a disk without room for what is still to be unpacked and the largest archive."""
    there = sum(
        entry.stat().st_size
        for place, _, names in os.walk(out)
        for entry in (Path(place) / name for name in names)
        if WORK not in entry.parts
    )
    needed = max(dataset.bytes - there, 0) + archive
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"--out {out}: the dataset takes {needed / 1e9:.1f} GB more and {free / 1e9:.1f} GB are "
            "free on that disk; name another place"
        )


def _fetch_checked(file: RemoteFile, part: Path, advance: Callable[[int], None]) -> None:
    fault: str | None = None
    for _ in range(2):
        fetch(file.url, part, file.max_bytes, advance)
        fault = file.fault(part)
        if fault is None:
            return
        advance(-file_size(part))
        part.unlink()
    raise UserError(
        f"{file.url} is not the file that was published: {fault}, twice; try later, or another --mirror"
    )


def _put_in_place(file: RemoteFile, out: Path, top: str) -> None:
    part = out / WORK / f"{file.name}.part"
    if not file.packed:
        publish(part, out / file.name)
        return
    unpacked = {"md5": file.md5, "files": unpack(part, out, top)}
    replace_file(_record(file, out), out / WORK, json.dumps(unpacked).encode())
    part.unlink()
