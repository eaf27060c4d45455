"""Scan of the source files: sizes, lengths by their headers, and copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from shards.audio.file_range import AudioFile, size_and_time
from shards.audio.load import BadFile, measure
from shards.build.copies import same_files
from shards.build.options import BuildOptions
from shards.progress import progress
from shards.sources.source import Item, Source
from shards.workers import run_jobs

FILES_PER_JOB = 256


class Bad(NamedTuple):
    """Unusable source file, and the reason."""

    filename: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Result of a scan.

    Attributes:
        items: items that have clips.
        clips_of: number of clips of each of them.
        stats: (bytes, modification time in ns) of every item of the source.
        bad: unusable files.
        short: items too short for a clip.
        rests: number of items that end in a remainder too short for a clip.
        copies: groups of indices of `items` with the same bytes.
    """

    items: list[Item]
    clips_of: list[int]
    stats: list[tuple[int, int]]
    bad: list[Bad]
    short: list[Item]
    rests: int
    copies: list[list[int]]


def scan(source: Source, options: BuildOptions, workers: int) -> Scan:
    """Scans all files; those of a source of single clips are not opened, since there may be many."""
    if source.images is not None:
        clips_of = [1] * len(source.items)
        return Scan(
            items=source.items, clips_of=clips_of, stats=[], bad=[], short=[], rests=0, copies=[]
        )
    files = [item.file for item in source.items]
    jobs = [files[i : i + FILES_PER_JOB] for i in range(0, len(files), FILES_PER_JOB)]
    look = partial(_look, sample_rate=None if source.one_clip else options.sample_rate)
    found: dict[int, list[tuple[int, int, int | str]]] = {}
    with progress("Looking at files", len(files)) as advance:
        for number, result in run_jobs(look, jobs, 1 if source.one_clip else workers):
            found[number] = result
            advance(len(result))
    items: list[Item] = []
    sizes: list[int] = []
    clips_of = []
    stats: list[tuple[int, int]] = []
    bad = [Bad(*pair) for pair in source.bad]
    short: list[Item] = []
    rests = 0
    looks = [look for number in range(len(jobs)) for look in found[number]]
    for item, (size, time, length) in zip(source.items, looks, strict=True):
        stats.append((size, time))
        if isinstance(length, str):
            bad.append(Bad(item.name, length))
            continue
        clips = 1 if source.one_clip else options.count_clips(length)
        if clips:
            items.append(item)
            sizes.append(size)
            clips_of.append(clips)
            rests += clips * options.length < length
        else:
            short.append(item)
    files = [item.file for item in items]
    copies = [] if source.one_clip else same_files(files, sizes, workers)
    return Scan(
        items=items,
        clips_of=clips_of,
        stats=stats,
        bad=bad,
        short=short,
        rests=rests,
        copies=copies,
    )


def _look(files: Sequence[AudioFile], sample_rate: int | None) -> list[tuple[int, int, int | str]]:
    """Returns (bytes, modification time in ns, samples or why it is unusable) of each file."""
    looks: list[tuple[int, int, int | str]] = []
    for file in files:
        try:
            size, time = size_and_time(file)
        except OSError:
            looks.append((0, 0, "no such file"))
            continue
        try:
            looks.append((size, time, measure(file, sample_rate) if sample_rate else 0))
        except BadFile as reason:
            looks.append((size, time, str(reason)))
    return looks
