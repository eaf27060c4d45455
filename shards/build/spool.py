"""Long recordings, decoded once.

The clips of a recording are spread over the shards. So that no process decodes it again, or holds
all of it in memory, recordings are first written as plain samples to the work folder, many to a file.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from shards.audio.clips import cut
from shards.audio.file_range import AudioFile
from shards.audio.load import BadFile, Clips, Heard, blocks
from shards.build.plan import Bad, BuildOptions, Plan, bad_file_error
from shards.errors import UserError
from shards.files.atomic import publish, replace_file, temporary_name, unfinished
from shards.files.documents import DocumentError, read_json, typed
from shards.progress import progress
from shards.workers import run_jobs

# File name in the source to (file of samples, first byte, samples).
Spooled = Mapping[str, tuple[str, int, int]]

CLIPS_PER_PART = 2048


@dataclass(frozen=True)
class SpoolJob:
    """Some recordings: (name, file) of each, and where their samples go."""

    number: int
    recordings: list[tuple[str, AudioFile]]
    work: Path
    sample_rate: int
    stop: bool


def needs_spool(plan: Plan) -> bool:
    """Tells whether a file has more than one clip."""
    return plan.source.images is None and any(
        clip.start for _, _, clips in plan.shards for clip in clips
    )


def spool(
    plan: Plan, work: Path, workers: int, *, show: bool, share: slice = slice(None)
) -> tuple[Spooled, list[Bad], dict[str, int]]:
    """Decodes all recordings into the work folder, or those that are not there yet.

    Args:
        plan: of the build.
        work: its work folder.
        workers: processes.
        show: show progress on standard error.
        share: which of the files to write, if not all.

    Returns:
        Where the samples of each are, the files that are bad, and name to samples louder than full
        scale.

    Raises:
        UserError: at the first bad file, if the build is to stop there.
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
    spooled: dict[str, tuple[str, int, int]] = {}
    bad: list[Bad] = []
    clipped: dict[str, int] = {}
    total = sum(clips[recording] for job in jobs for recording in job.recordings)
    with progress("Decoding clips", total, show=show) as advance:
        for number, record in run_jobs(spool_part, jobs, workers):
            found = [Bad(*pair) for pair in record["bad"]]
            if found and stop:
                raise bad_file_error(found[0], options)
            bad.extend(found)
            clipped |= record["clipped"]
            for name, offset, samples in record["recordings"]:
                spooled[name] = (str(work / record["file"]), offset, samples)
            advance(sum(clips[recording] for recording in jobs[number].recordings))
    return spooled, bad, clipped


def spool_part(job: SpoolJob) -> dict[str, Any]:
    """Decodes some recordings into one file, unless that was done already.

    Returns:
        Its record: file, bytes, recordings (name, first byte, samples), clipped (name to samples
        louder than full scale) and bad (name, reason).
    """
    target = job.work / f"spool-{job.number:06d}.pcm"
    record_path = job.work / f"{target.name}.json"
    if record_path.is_file() and target.is_file():
        kept = _read_record(record_path)
        if kept is not None and kept["bytes"] == target.stat().st_size:
            return kept
    temporary = job.work / temporary_name(target.name)
    recordings: list[tuple[str, int, int]] = []
    clipped: dict[str, int] = {}
    bad: list[tuple[str, str]] = []
    with unfinished(temporary), temporary.open("wb") as file:
        size = 0
        for name, path in job.recordings:
            heard = Heard()
            try:
                for block in blocks(path, job.sample_rate):
                    heard.add(block)
                    file.write(block.samples.data)
            except BadFile as reason:
                bad.append((name, str(reason)))
                if job.stop:
                    break
                file.seek(size)
                file.truncate()
                continue
            recordings.append((name, size, heard.samples))
            size += 2 * heard.samples
            if heard.clipped:
                clipped[name] = heard.clipped
    record = {
        "file": target.name,
        "bytes": size,
        "recordings": recordings,
        "clipped": clipped,
        "bad": bad,
    }
    if bad and job.stop:
        temporary.unlink()
        return record
    publish(temporary, target)
    replace_file(record_path, job.work, json.dumps(record).encode())
    return record


class _Record(TypedDict):
    """What the record of a part holds."""

    file: str
    bytes: int
    recordings: list[tuple[str, int, int]]
    clipped: NotRequired[dict[str, int]]
    bad: list[tuple[str, str]]


def _read_record(path: Path) -> dict[str, Any] | None:
    """Returns the record of a part; None if it cannot be used, so that the part is made anew."""
    try:
        record = read_json(path, dict[str, Any])
        typed(record, _Record)
    except (UserError, DocumentError):
        return None
    return record if f"{record['file']}.json" == path.name else None


def read_spooled(place: tuple[str, int, int], start: int, options: BuildOptions) -> Clips | None:
    """Returns clip number `start` of a spooled recording, or None if it has fewer."""
    file, offset, samples = place
    if start >= options.count_clips(samples):
        return None
    first = start * options.length
    count = min(options.length, samples - first)
    part = np.fromfile(file, dtype=np.int16, count=count, offset=offset + 2 * first)
    return cut(part, 0, options.length)
