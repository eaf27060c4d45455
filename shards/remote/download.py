"""Public datasets, fetched by name: resumed, checked by md5, unpacked."""

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
from shards.remote.http import fetch, remote_size
from shards.remote.unzip import unpack

# What is unfinished, and notes of what is finished.
WORK = ".download"
_MB = 10**6
# What an archive may have beyond the bytes of all unpacked files, and a line of a list, in bytes.
_MOST_PACKED = 100 * _MB
_MOST_LINE = 1024


def _is_download(folder: Path) -> bool:
    """Says whether it has a work folder with nothing in it but what a download writes."""
    work = folder / WORK
    names = [path.name for path in work.iterdir()] if work.is_dir() else []
    notes = [name for name in names if name.endswith(".json")]
    return (
        "lock" in names
        and all(name == "lock" or name.endswith((".part", ".json", ".tmp")) for name in names)
        and all({"md5", "files"} <= read_mark(work / name).keys() for name in notes)
    )


DOWNLOAD = Kind(name="a download", parts=(f"{WORK}/",), made=_is_download)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to fetch; a .zip is unpacked and removed.

    Attributes:
        name: what it is called on the disk.
        url: where it is.
        most: bytes that it may have.
        md5: of its bytes; None if it is not known.
        lines: of a list whose md5 is not known, with its header.
    """

    name: str
    url: str
    most: int
    md5: str | None = None
    lines: int | None = None

    @property
    def packed(self) -> bool:
        """Whether it is to be unpacked."""
        return self.name.endswith(".zip")

    def fault(self, path: Path) -> str | None:
        """Returns what is wrong with a file that was fetched, or None."""
        if self.lines is not None:
            found = path.read_bytes().count(b"\n")
            return None if found == self.lines else f"expected {self.lines} lines, found {found}"
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return None if md5 == self.md5 else f"expected md5 {self.md5}, found {md5}"


@dataclass(frozen=True, kw_only=True)
class RemoteDataset:
    """A published dataset.

    Attributes:
        title: what it is called.
        licence: what one may do with it, and where that is said.
        url: of a file, with {name} for its name.
        md5: name to md5 of its files.
        top: the folder at the beginning of all names in its archives.
        bytes: of the unpacked files.
        lists_url: of the list of a training subset, likewise.
        lists: percent to the number of clips of its training subsets.
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
        """Returns what is to be fetched.

        Args:
            splits: of `lists`.
            mirror: a folder that has all files, instead of `url` and `lists_url`.

        Raises:
            UserError: there is no such subset, or the mirror is no URL.
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
                most=_MOST_PACKED + self.bytes,
                md5=md5,
            )
            for name, md5 in self.md5.items()
        ]
        names = {f"split{percent}.csv": self.lists[percent] for percent in splits}
        lists = [
            RemoteFile(
                name=name,
                url=(own or self.lists_url).replace("{name}", name),
                most=_MOST_LINE * (clips + 1),
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
        # What everything else needs comes first.
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


def download(
    dataset: RemoteDataset, files: Sequence[RemoteFile], out: Path, *, show: bool = False
) -> list[str]:
    """Fetches what is missing of a dataset. Interrupted, the same call goes on where it was.

    Args:
        dataset: what the files belong to.
        files: to be fetched.
        out: folder of the unpacked dataset.
        show: whether to tell how far it is.

    Returns:
        The names of the files that were fetched.

    Raises:
        UserError: a file cannot be had, is damaged twice, or the disk is too small.
    """
    claim(out, DOWNLOAD, "--out")
    work = out / WORK
    busy = f"{out}: another download is at work there"
    # The lock stays: with it the folder is known again.
    with locked(work / "lock", busy, keep=True), writing(out, "--out"):
        missing = [file for file in files if not _is_there(file, out)]
        sizes = [remote_size(file.url) or 0 for file in missing]
        have = [_size(work / f"{file.name}.part") for file in missing]
        left = [max(size - part, 0) for size, part in zip(sizes, have, strict=True)]
        if any(file.packed for file in missing):
            _refuse_small_disk(dataset, out, max(left))
        with progress("Fetching, MB", -(-sum(left) // _MB), show=show) as advance:
            megabytes = _Megabytes(advance)
            for file in missing:
                _fetch_checked(file, work / f"{file.name}.part", megabytes)
                _put_in_place(file, out, dataset.top)
    return [file.name for file in missing]


class _Megabytes:
    """Passes whole megabytes on to a progress bar."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.bytes, self.told = advance, 0, 0

    def __call__(self, change: int) -> None:
        self.bytes += change
        whole = self.bytes // _MB
        if whole != self.told:
            self.advance(whole - self.told)
            self.told = whole


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _note(file: RemoteFile, out: Path) -> Path:
    return out / WORK / f"{file.name}.json"


def _is_there(file: RemoteFile, out: Path) -> bool:
    """Says whether a file was fetched before, and all that it held is still there."""
    if not file.packed:
        return (out / file.name).is_file() and file.fault(out / file.name) is None
    if not (note := _note(file, out)).is_file():
        return False
    try:
        held = read_json(note, _Held)
    except UserError:
        return False
    return held.md5 == file.md5 and all(
        _size(out / name) == size for name, size in held.files.items()
    )


@dataclass(frozen=True)
class _Held:
    """The note of an archive that was unpacked: its hash, and its files with their bytes."""

    md5: str
    files: dict[str, int]


def _refuse_small_disk(dataset: RemoteDataset, out: Path, archive: int) -> None:
    """Counts what is still to be unpacked, and the largest archive, which is there meanwhile."""
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
        try:
            fetch(file.url, part, file.most, advance)
        except OSError as error:
            raise UserError(f"{part} cannot be written: {error.strerror}") from error
        fault = file.fault(part)
        if fault is None:
            return
        advance(-_size(part))
        part.unlink()
    raise UserError(
        f"{file.url} is not the file that was published: {fault}, twice; try later, or another --mirror"
    )


def _put_in_place(file: RemoteFile, out: Path, top: str) -> None:
    part = out / WORK / f"{file.name}.part"
    if not file.packed:
        publish(part, out / file.name)
        return
    held = {"md5": file.md5, "files": unpack(part, out, top)}
    replace_file(_note(file, out), out / WORK, json.dumps(held).encode())
    part.unlink()
