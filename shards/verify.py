"""Verification of a dataset: every damaged file, and every damaged sample in it.

The SHA-256 of each file is compared first. Only shards that differ are read record by record, to find
the damaged samples.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
    MAX_MANIFEST,
    REJECTED_NAME,
    WORK_NAME,
    Index,
    Manifest,
    RejectedFile,
    Shard,
    max_index_bytes,
    parse_manifest,
    sha256_of_file,
)
from shards.remote.fetch import fetch_bytes, fetch_file, is_remote
from shards.remote.folder import fetch_index

# Bytes of one line of rejected.csv, a path and a reason.
MAX_REJECTED_LINE = 1 << 14


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: the file, the key of the sample (or None), and what is wrong."""

    file: str
    key: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify(location: str | Path) -> list[Problem]:
    """Verifies every byte of a dataset, in a folder or behind a URL.

    The files of a remote dataset are read without being cached.

    Returns:
        The problems; empty if every byte is as it was written.

    Raises:
        UserError: there is no such folder, or no `dataset.json` behind the URL.
    """
    if is_remote(str(location)):
        return _verify_remote(str(location).rstrip("/"))
    path = Path(location).absolute()
    if not path.is_dir():
        raise UserError(f"no dataset at {path}: the folder does not exist")
    file = path / MANIFEST_NAME
    if not file.is_file():
        return [Problem(MANIFEST_NAME, None, "missing: the folder is not a finished dataset")]
    try:
        manifest = parse_manifest(read_bytes(file, MAX_MANIFEST))
    except ValueError as error:
        return [Problem(MANIFEST_NAME, None, f"damaged: {error}; nothing else can be checked")]
    index, problems = _check_index(path, manifest)
    extra = _extra_files(path, manifest)
    for number in range(len(manifest.shards)):
        problems.extend(_check_shard(path, manifest, number, index, extra))
    if manifest.rejected is not None:
        rejected = manifest.rejected
        max_bytes = _max_rejected_bytes(rejected)
        problems.extend(_check_listed(path, REJECTED_NAME, rejected["sha256"], max_bytes))
    problems.extend(
        Problem(name, None, what or "unknown file: it is not part of the dataset")
        for name, what in sorted(extra.items())
    )
    return problems


def _verify_remote(url: str) -> list[Problem]:
    data = fetch_bytes(file_in(url, MANIFEST_NAME), MAX_MANIFEST)
    try:
        manifest = parse_manifest(data)
    except ValueError as error:
        return [Problem(MANIFEST_NAME, None, f"damaged: {error}; nothing else can be checked")]
    checks: dict[str, Callable[[], None]] = {INDEX_NAME: lambda: fetch_index(url, manifest, None)}
    for shard in manifest.shards:
        address = file_in(url, shard.name)
        checks[shard.name] = partial(fetch_file, address, shard.sha256, shard.bytes, None)
    if (rejected := manifest.rejected) is not None:
        max_bytes = _max_rejected_bytes(rejected)
        address = file_in(url, REJECTED_NAME)
        checks[REJECTED_NAME] = partial(
            fetch_file, address, rejected["sha256"], max_bytes, None, exact=False
        )
    problems = []
    for name, check in checks.items():
        try:
            check()
        except UserError as error:
            problems.append(Problem(name, None, str(error)))
    return problems


def _max_rejected_bytes(rejected: RejectedFile) -> int:
    return MAX_REJECTED_LINE * (1 + rejected["count"])


def _check_listed(path: Path, name: str, sha256: str, max_bytes: int) -> list[Problem]:
    file = path / name
    if not file.is_file():
        return [Problem(name, None, "missing")]
    if sha256_of_file(file, max_bytes) != sha256:
        return [Problem(name, None, "damaged: its sha256 differs from dataset.json")]
    return []


def _check_index(path: Path, manifest: Manifest) -> tuple[Index | None, list[Problem]]:
    """Returns the index, or None if it is damaged, and its problems."""
    problems = _check_listed(
        path, INDEX_NAME, manifest.index["sha256"], max_index_bytes(manifest.index)
    )
    if problems:
        return None, problems
    # The hashes agree: anything wrong from here on comes from a faulty or forged build.
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
    """Returns the files that do not belong to the dataset, each with what is known of it."""
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
    index: Index | None,
    extra: dict[str, str],
) -> Iterator[Problem]:
    shard = manifest.shards[number]
    file = path / shard.name
    if not file.is_file():
        yield Problem(
            shard.name, None, f"missing: {shard.count} clips{_find_renamed(path, shard, extra)}"
        )
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
    found = list(_check_records(file, shard, number, index))
    yield from found or [Problem(shard.name, None, "damaged: its sha256 differs")]


def _find_renamed(path: Path, shard: Shard, extra: dict[str, str]) -> str:
    """Looks for a missing shard among the unknown files; returns a remark on it, or ""."""
    for name in extra:
        other = path / name
        same_size = other.is_file() and other.stat().st_size == shard.bytes
        if same_size and sha256_of_file(other) == shard.sha256:
            extra[name] = f"unknown file: it is {shard.name} under another name"
            return f"; {name} is this shard under another name"
    return ""


def _check_records(file: Path, shard: Shard, number: int, index: Index) -> Iterator[Problem]:
    """Yields the damaged records of a shard."""
    numbers, keys = index.numbers, index.texts["key"]
    rows = np.flatnonzero(numbers["shard"] == number)
    size = file.stat().st_size
    end = shard.bytes - len(END_OF_ARCHIVE)
    if size < shard.bytes:
        ends = numbers["record_offset"][rows] + numbers["record_size"][rows]
        lost = [int(row) for row in rows[ends > size]]
        first = keys[lost[0]].as_py() if lost else None
        yield Problem(
            shard.name,
            first,
            f"cut short: {size:,} of {shard.bytes:,} bytes, {len(lost)} clips are lost"
            + (f", the first is {first}" if lost else ""),
        )
    with file.open("rb") as data:
        for row in rows.tolist():
            start, length = int(numbers["record_offset"][row]), int(numbers["record_size"][row])
            if start + length > size:
                break
            data.seek(start)
            record = data.read(length)
            if zlib.crc32(record) == numbers["record_crc32"][row]:
                continue
            key = keys[row].as_py()
            begin = int(numbers["offset"][row]) - start
            payload = record[begin : begin + int(numbers["size"][row])]
            part = (
                "tar header, JSON or padding"
                if zlib.crc32(payload) == numbers["crc32"][row]
                else "payload"
            )
            yield Problem(shard.name, key, f"{part} of {key} is damaged")
        data.seek(end)
        rest = data.read(len(END_OF_ARCHIVE) + 1)
    if size >= shard.bytes and rest[: len(END_OF_ARCHIVE)] != END_OF_ARCHIVE:
        yield Problem(shard.name, None, "the end of the archive is damaged")
    if size > shard.bytes:
        yield Problem(shard.name, None, f"too long: {size:,} instead of {shard.bytes:,} bytes")
