"""Every way a dataset can be broken, named.

The SHA-256 of every file is compared first. Only a shard that differs is read record by record, to
say which samples are damaged.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.build.tar import END_OF_ARCHIVE
from shards.credentials import file_in
from shards.errors import UserError
from shards.files.documents import read_bytes
from shards.index import contradictions, open_index
from shards.manifest import (
    INDEX_NAME,
    INDEX_TYPES,
    MANIFEST_NAME,
    MOST_MANIFEST,
    REJECTED_NAME,
    WORK_NAME,
    Manifest,
    Shard,
    most_index_bytes,
    parse_manifest,
    sha256_of_file,
)
from shards.remote.fetch import fetch_bytes, fetch_file, is_remote
from shards.remote.folder import fetch_index

# Of a line of rejected.csv, in bytes: a path and a reason.
MOST_REJECTED = 1 << 14


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: in which file, with which sample (or None), and what."""

    file: str
    key: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify(location: str | Path) -> list[Problem]:
    """Checks every byte of a dataset folder, or of that behind a URL.

    Of a remote dataset every file is read where it is; nothing of it is kept.

    Returns:
        What is wrong; empty if every byte is the one that was written.

    Raises:
        UserError: if there is no such folder, or no `dataset.json` behind the URL.
    """
    if is_remote(str(location)):
        return _verify_remote(str(location).rstrip("/"))
    path = Path(location).absolute()
    if not path.is_dir():
        raise UserError(f"no dataset at {path}: the folder does not exist")
    file = path / MANIFEST_NAME
    if not file.is_file():
        return [Problem(MANIFEST_NAME, None, "missing: the folder is no finished dataset")]
    try:
        manifest = parse_manifest(read_bytes(file, MOST_MANIFEST))
    except ValueError as error:
        return [Problem(MANIFEST_NAME, None, f"damaged: {error}; nothing else can be checked")]
    index, problems = _check_index(path, manifest)
    extra = _extra_files(path, manifest)
    for number in range(len(manifest.shards)):
        problems.extend(_check_shard(path, manifest, number, index, extra))
    if manifest.rejected is not None:
        rejected = manifest.rejected
        most = _most_rejected(rejected)
        problems.extend(_check_listed(path, REJECTED_NAME, rejected["sha256"], most))
    problems.extend(
        Problem(name, None, what or "unknown file: it is no part of the dataset")
        for name, what in sorted(extra.items())
    )
    return problems


def _verify_remote(url: str) -> list[Problem]:
    data = fetch_bytes(file_in(url, MANIFEST_NAME), MOST_MANIFEST)
    try:
        manifest = parse_manifest(data)
    except ValueError as error:
        return [Problem(MANIFEST_NAME, None, f"damaged: {error}; nothing else can be checked")]
    checks: dict[str, Callable[[], None]] = {INDEX_NAME: lambda: fetch_index(url, manifest, None)}
    for shard in manifest.shards:
        place = file_in(url, shard.name)
        checks[shard.name] = partial(fetch_file, place, shard.sha256, shard.bytes, None)
    if (rejected := manifest.rejected) is not None:
        most = _most_rejected(rejected)
        place = file_in(url, REJECTED_NAME)
        checks[REJECTED_NAME] = partial(
            fetch_file, place, rejected["sha256"], most, None, exact=False
        )
    problems = []
    for name, check in checks.items():
        try:
            check()
        except UserError as error:
            problems.append(Problem(name, None, str(error)))
    return problems


def _most_rejected(rejected: Mapping[str, Any]) -> int:
    count: int = rejected["count"]
    return MOST_REJECTED * (1 + count)


def _check_listed(path: Path, name: str, sha256: str, most: int) -> list[Problem]:
    file = path / name
    if not file.is_file():
        return [Problem(name, None, "missing")]
    if sha256_of_file(file, most) != sha256:
        return [Problem(name, None, "damaged: its sha256 differs from dataset.json")]
    return []


def _check_index(path: Path, manifest: Manifest) -> tuple[Mapping[str, Any] | None, list[Problem]]:
    """Returns the index, or None if it is damaged, and what is wrong with it."""
    problems = _check_listed(
        path, INDEX_NAME, manifest.index["sha256"], most_index_bytes(manifest.index)
    )
    if problems:
        return None, problems
    # The hashes agree, so anything from here on was written by a faulty or forged build.
    try:
        index = open_index(path / INDEX_NAME, manifest, (*INDEX_TYPES, *manifest.groups))
    except UserError as error:
        return None, [Problem(INDEX_NAME, None, str(error))]
    wrong = contradictions(index, manifest)
    problems = [
        Problem(INDEX_NAME, None, f"its {what} contradict {MANIFEST_NAME}") for what in wrong
    ]
    return None if wrong else index, problems


def _extra_files(path: Path, manifest: Manifest) -> dict[str, str]:
    """Returns the files that should not be there, each with what is known of it."""
    expected = {MANIFEST_NAME, INDEX_NAME, *(shard.name for shard in manifest.shards)}
    if manifest.rejected is not None:
        expected.add(REJECTED_NAME)
    extra = {name: "" for name in os.listdir(path) if name not in expected}  # noqa: PTH208
    if WORK_NAME in extra:
        extra[WORK_NAME] = "left over from the build: run the same build again, or remove it"
    return extra


def _check_shard(
    path: Path,
    manifest: Manifest,
    number: int,
    index: Mapping[str, Any] | None,
    extra: dict[str, str],
) -> Iterator[Problem]:
    shard = manifest.shards[number]
    file = path / shard.name
    if not file.is_file():
        yield Problem(shard.name, None, f"missing: {shard.count} clips{_found(path, shard, extra)}")
        return
    sha256 = sha256_of_file(file, max(other.bytes for other in manifest.shards))
    size = file.stat().st_size
    if sha256 == shard.sha256 and size == shard.bytes:
        return
    twins = [other.name for other in manifest.shards if other.sha256 == sha256]
    if twins:
        yield Problem(shard.name, None, f"holds what belongs in {twins[0]}")
        return
    if index is None:
        yield Problem(
            shard.name, None, f"damaged: its sha256 differs; {INDEX_NAME} cannot say which clips"
        )
        return
    found = list(_walk(file, shard, number, index))
    yield from found or [Problem(shard.name, None, "damaged: its sha256 differs")]


def _found(path: Path, shard: Shard, extra: dict[str, str]) -> str:
    for name in extra:
        other = path / name
        same_size = other.is_file() and other.stat().st_size == shard.bytes
        if same_size and sha256_of_file(other) == shard.sha256:
            extra[name] = f"unknown file: it is {shard.name} under another name"
            return f"; {name} is this shard under another name"
    return ""


def _walk(file: Path, shard: Shard, number: int, index: Mapping[str, Any]) -> Iterator[Problem]:
    """Says which records of a damaged shard differ."""
    rows = np.flatnonzero(index["shard"] == number)
    size = file.stat().st_size
    end = shard.bytes - len(END_OF_ARCHIVE)
    if size < shard.bytes:
        ends = index["record_offset"][rows] + index["record_size"][rows]
        lost = [int(row) for row in rows[ends > size]]
        first = index["key"][lost[0]].as_py() if lost else None
        yield Problem(
            shard.name,
            first,
            f"cut short: {size:,} of {shard.bytes:,} bytes, {len(lost)} clips are lost"
            + (f", the first is {first}" if lost else ""),
        )
    with file.open("rb") as data:
        for row in rows.tolist():
            start, length = int(index["record_offset"][row]), int(index["record_size"][row])
            if start + length > size:
                break
            data.seek(start)
            record = data.read(length)
            if zlib.crc32(record) == index["record_crc32"][row]:
                continue
            key = index["key"][row].as_py()
            first = int(index["offset"][row]) - start
            payload = record[first : first + int(index["size"][row])]
            part = (
                "tar header, JSON or padding"
                if zlib.crc32(payload) == index["crc32"][row]
                else "payload"
            )
            yield Problem(shard.name, key, f"{part} of {key} is damaged")
        data.seek(end)
        rest = data.read(len(END_OF_ARCHIVE) + 1)
    if size >= shard.bytes and rest[: len(END_OF_ARCHIVE)] != END_OF_ARCHIVE:
        yield Problem(shard.name, None, "the end of the archive is damaged")
    if size > shard.bytes:
        yield Problem(shard.name, None, f"too long: {size:,} and not {shard.bytes:,} bytes")
