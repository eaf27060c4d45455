"""Duplicates: files with the same bytes, and clips with the same samples."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from shards.audio.file_range import AudioFile, FileRange, open_range
from shards.build.tar import Record
from shards.progress import progress
from shards.workers import run_jobs

Key = TypeVar("Key")

FILES_PER_JOB = 64
# Bytes of each file that are compared first: most files of equal size differ in them.
PEEK = 16384
READ_BYTES = 1 << 20


def same_files(files: Sequence[AudioFile], sizes: Sequence[int], workers: int) -> list[list[int]]:
    """Returns groups of two or more indices of files with the same bytes, in a fixed order."""
    sets = _sets(enumerate(sizes))
    for what, most in (("Comparing files", PEEK), ("Comparing copies", None)):
        sets = _split(sets, files, most, workers, what)
    return sets


def same_clips(
    rows: Iterable[int], places: Sequence[tuple[str, Record]], folder: Path
) -> list[list[int]]:
    """Returns groups of two or more rows whose payloads have the same bytes, in order.

    Args:
        rows: rows to compare.
        places: shard and place in it of every row.
        folder: of the shards.
    """
    sets = _sets((row, (place.crc32, place.size)) for row in rows for _, place in [places[row]])
    # Among 200,000 clips, some have the same CRC-32 by chance.
    return [same for rows_of in sets for same in _sets(_digests(rows_of, places, folder))]


def _digests(
    rows: Sequence[int], places: Sequence[tuple[str, Record]], folder: Path
) -> Iterable[tuple[int, bytes]]:
    for shard, in_shard in groupby(rows, key=lambda row: places[row][0]):
        with (folder / shard).open("rb") as file:
            for row in in_shard:
                place = places[row][1]
                file.seek(place.offset)
                yield row, hashlib.sha256(file.read(place.size)).digest()


def _split(
    sets: list[list[int]],
    files: Sequence[AudioFile],
    most: int | None,
    workers: int,
    what: str,
) -> list[list[int]]:
    places = [place for of_set in sets for place in of_set]
    jobs = [places[i : i + FILES_PER_JOB] for i in range(0, len(places), FILES_PER_JOB)]
    digest_of: dict[int, bytes] = {}
    with progress(what, len(places)) as advance:
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
            # Equal to no other file; the build reports why it is unreadable.
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
