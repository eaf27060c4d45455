"""The same bytes twice: files that are copies of others, and clips that came out the same."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shards.audio.file_range import AudioFile, FileRange, open_range
from shards.progress import progress
from shards.workers import run_jobs

Key = TypeVar("Key")

FILES_PER_JOB = 64
# What is read of each file first: most files of one size differ here.
PEEK = 16384
READ_BYTES = 1 << 20


def same_files(
    files: Sequence[AudioFile], sizes: Sequence[int], workers: int, *, show: bool
) -> list[list[int]]:
    """Returns the places of files with the same bytes: sets of two or more, in a fixed order."""
    sets = _sets(enumerate(sizes))
    for what, most in (("Comparing files", PEEK), ("Comparing copies", None)):
        sets = _split(sets, files, most, workers, what if show else None)
    return sets


def same_clips(rows: Iterable[int], columns: dict[str, list[Any]], folder: Path) -> list[list[int]]:
    """Returns rows of an index whose payloads have the same bytes: sets of two or more, in order.

    Args:
        rows: those to compare.
        columns: of the index.
        folder: of the shards, by `shard_name`.
    """
    chosen = np.fromiter(rows, dtype=np.int64)
    marks = np.array([columns["crc32"], columns["size"]], dtype=np.int64)[:, chosen]
    sets = _sets(zip(chosen.tolist(), map(tuple, marks.T.tolist()), strict=True))
    # Among 200,000 clips some have the same checksum by chance.
    return [same for rows_of in sets for same in _sets(_digests(rows_of, columns, folder))]


def _digests(
    rows: Sequence[int], columns: dict[str, list[Any]], folder: Path
) -> Iterable[tuple[int, bytes]]:
    of_shard = groupby(rows, key=lambda row: columns["shard_name"][row])
    for shard, in_shard in of_shard:
        with (folder / shard).open("rb") as file:
            for row in in_shard:
                file.seek(columns["offset"][row])
                yield row, hashlib.sha256(file.read(columns["size"][row])).digest()


def _split(
    sets: list[list[int]],
    files: Sequence[AudioFile],
    most: int | None,
    workers: int,
    what: str | None,
) -> list[list[int]]:
    places = [place for of_set in sets for place in of_set]
    jobs = [places[i : i + FILES_PER_JOB] for i in range(0, len(places), FILES_PER_JOB)]
    digest_of: dict[int, bytes] = {}
    with progress(what or "", len(places), show=what is not None) as advance:
        paths = [[files[place] for place in job] for job in jobs]
        for number, digests in run_jobs(partial(_hash, most=most), paths, workers):
            digest_of.update(zip(jobs[number], digests, strict=True))
            advance(len(digests))
    return [
        same for of_set in sets for same in _sets((place, digest_of[place]) for place in of_set)
    ]


def _hash(files: Sequence[AudioFile], most: int | None) -> list[bytes]:
    digests = []
    for file in files:
        try:
            handle, start, size = open_range(file)
        except OSError:
            path = file.path if isinstance(file, FileRange) else os.fspath(file)
            # Like no other; the build says why.
            digests.append(path.encode(errors="surrogateescape"))
            continue
        try:
            digests.append(_digest(handle, start, size, most))
        finally:
            os.close(handle)
    return digests


def _digest(handle: int, start: int, size: int, most: int | None) -> bytes:
    if most is not None:
        return hashlib.sha256(os.pread(handle, most, start + max(0, size - most) // 2)).digest()
    digest, end = hashlib.sha256(), start + size
    while start < end and (block := os.pread(handle, min(READ_BYTES, end - start), start)):
        digest.update(block)
        start += len(block)
    return digest.digest()


def _sets(marked: Iterable[tuple[int, Key]]) -> list[list[int]]:
    by_mark: dict[Key, list[int]] = defaultdict(list)
    for place, mark in marked:
        by_mark[mark].append(place)
    return [places for places in by_mark.values() if len(places) > 1]
