"""Spooling: long recordings are decoded once, to files of samples in the work folder.

The clips of a recording are spread over the shards. With the spool, no process decodes a recording
again, or holds all of it in memory.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.audio.clips import cut
from shards.audio.file_range import AudioFile
from shards.audio.load import BadFile, Clips, Heard, blocks
from shards.build.plan import Bad, BuildOptions, Plan, bad_file_error
from shards.errors import UserError
from shards.files.atomic import publish, replace_file, temporary_name, unfinished
from shards.files.documents import read_json
from shards.progress import progress
from shards.workers import run_jobs

CLIPS_PER_PART = 2048


class Place(NamedTuple):
    """Where the samples of a recording lie: file, first byte, and number of samples."""

    file: str
    offset: int
    samples: int


# File name in the source to the place of its samples.
Spooled = Mapping[str, Place]


@dataclass(frozen=True)
class SpoolJob:
    """Job of one process: recordings as (name, file), and where to write their samples."""

    number: int
    recordings: list[tuple[str, AudioFile]]
    work: Path
    sample_rate: int
    stop: bool


@dataclass(kw_only=True)
class SpoolRecord:
    """Record of a finished part, kept as JSON in the work folder.

    Attributes:
        file: name of the file of samples.
        bytes: its size.
        recordings: (name, first byte, number of samples) of each recording in it.
        clipped: file name to number of samples beyond full scale.
        bad: bad files.
    """

    file: str
    bytes: int
    recordings: list[tuple[str, int, int]]
    clipped: dict[str, int] = field(default_factory=dict)
    bad: list[Bad]


def needs_spool(plan: Plan) -> bool:
    """Returns whether any file has more than one clip."""
    return plan.source.images is None and any(
        clip.start for _, _, clips in plan.shards for clip in clips
    )


def spool(
    plan: Plan, work: Path, workers: int, *, share: slice = slice(None)
) -> tuple[Spooled, list[Bad], dict[str, int]]:
    """Decodes all recordings that are not yet in the work folder.

    Args:
        plan: plan of the build.
        work: work folder.
        workers: number of processes.
        share: parts to write.

    Returns:
        The places of the samples, the bad files, and the number of samples beyond full scale by file
        name.

    Raises:
        UserError: a file is bad, and `on_error` is "stop".
    """
    clips = Counter[tuple[str, AudioFile]]()
    for _, _, of_shard in plan.shards:
        clips.update((clip.name, clip.file) for clip in of_shard)
    parts: list[list[tuple[str, AudioFile]]] = [[]]
    count = 0
    for recording in sorted(clips, key=itemgetter(0)):
        if count >= CLIPS_PER_PART:
            parts.append([])
            count = 0
        parts[-1].append(recording)
        count += clips[recording]
    options = plan.options
    stop = options.on_error == "stop"
    jobs = [SpoolJob(i, part, work, options.sample_rate, stop) for i, part in enumerate(parts)]
    jobs = jobs[share]
    spooled: dict[str, Place] = {}
    bad: list[Bad] = []
    clipped: dict[str, int] = {}
    total = sum(clips[recording] for job in jobs for recording in job.recordings)
    with progress("Decoding clips", total) as advance:
        for number, record in run_jobs(spool_part, jobs, workers):
            if record.bad and stop:
                raise bad_file_error(record.bad[0], options)
            bad.extend(record.bad)
            clipped |= record.clipped
            for name, offset, samples in record.recordings:
                spooled[name] = Place(str(work / record.file), offset, samples)
            advance(sum(clips[recording] for recording in jobs[number].recordings))
    return spooled, bad, clipped


def spool_part(job: SpoolJob) -> SpoolRecord:
    """Decodes some recordings into one file, unless it exists; returns its record."""
    target = job.work / f"spool-{job.number:06d}.pcm"
    record_path = job.work / f"{target.name}.json"
    if record_path.is_file() and target.is_file():
        kept = _read_record(record_path)
        if kept is not None and kept.bytes == target.stat().st_size:
            return kept
    temporary = job.work / temporary_name(target.name)
    record = SpoolRecord(file=target.name, bytes=0, recordings=[], bad=[])
    with unfinished(temporary), temporary.open("wb") as file:
        for name, path in job.recordings:
            heard = Heard()
            try:
                for block in blocks(path, job.sample_rate):
                    heard.add(block)
                    file.write(block.samples.data)
            except BadFile as reason:
                record.bad.append(Bad(name, str(reason)))
                if job.stop:
                    break
                file.seek(record.bytes)
                file.truncate()
                continue
            record.recordings.append((name, record.bytes, heard.samples))
            record.bytes += 2 * heard.samples
            if heard.clipped:
                record.clipped[name] = heard.clipped
    if record.bad and job.stop:
        temporary.unlink()
        return record
    publish(temporary, target)
    replace_file(record_path, job.work, json.dumps(vars(record)).encode())
    return record


def _read_record(path: Path) -> SpoolRecord | None:
    """Returns the record of a part; None if it is unusable and the part has to be made again."""
    try:
        record = read_json(path, SpoolRecord)
    except UserError:
        return None
    return record if f"{record.file}.json" == path.name else None


def read_spooled(place: Place, start: int, options: BuildOptions) -> Clips | None:
    """Returns clip number `start` of a spooled recording, or None if it has fewer."""
    if start >= options.count_clips(place.samples):
        return None
    first = start * options.length
    count = min(options.length, place.samples - first)
    part = np.fromfile(place.file, dtype=np.int16, count=count, offset=place.offset + 2 * first)
    return cut(part, 0, options.length)
