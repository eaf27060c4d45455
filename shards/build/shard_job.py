"""Making one shard, and the record of its rows."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.audio.clips import cut, encode
from shards.audio.load import BadFile, Clips, load
from shards.build.plan import Bad, BuildOptions, Clip
from shards.build.spool import Spooled, read_spooled
from shards.build.tar import END_OF_ARCHIVE, Record, write_record
from shards.errors import UserError
from shards.files.atomic import replace_file, sync, temporary_name, unfinished
from shards.files.documents import DocumentError, read_json, typed
from shards.manifest import WORK_NAME, sha256_of_file

MAX_RECORD = 256 << 20  # bytes; the record of a shard of a million clips is smaller


@dataclass(frozen=True)
class ShardJob:
    """Job of one process: all that it needs to make one shard."""

    name: str
    split: str
    clips: list[Clip]
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    out: Path
    options: BuildOptions
    one_clip: bool
    spooled: Spooled | None
    images: NDArray[np.uint8] | None


class Sample(NamedTuple):
    """One sample of a shard: a row of the index."""

    key: str
    label: int
    recording: str
    groups: tuple[str, ...]
    place: Record


@dataclass(kw_only=True)
class ShardRecord:
    """Record of a finished shard, kept as JSON in the work folder.

    Attributes:
        name: file name of the shard.
        split: of all its samples.
        bytes: its size.
        sha256: of the file.
        rows: its samples in order; on disk, each is one flat list.
        clipped: file name to number of samples beyond full scale; spooled recordings are not included.
        silent: keys of clips whose samples are all equal.
        rejected: bad files.
    """

    name: str
    split: str
    bytes: int
    sha256: str
    rows: list[Sample]
    clipped: dict[str, int] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    rejected: list[Bad]


def make_shard(job: ShardJob) -> ShardRecord | Bad:
    """Writes one shard unless it exists; returns its record, or the bad file that stops the build."""
    work = job.out / WORK_NAME
    target, record_path = job.out / job.name, work / f"{job.name}.json"
    if record_path.is_file() and target.is_file():
        kept = _read_record(record_path, len(job.groups))
        if kept is not None and sha256_of_file(target) == kept.sha256:
            return kept
    temporary = work / temporary_name(job.name)
    record = ShardRecord(name=job.name, split=job.split, bytes=0, sha256="", rows=[], rejected=[])
    with unfinished(temporary), temporary.open("wb", buffering=1 << 20) as file:
        for clip, payload in _payloads(job, record):
            if record.rejected and job.options.on_error == "stop":
                break
            fields = {
                **dict(zip(job.groups, clip.groups, strict=True)),
                "class": job.classes[clip.label],
                "label": clip.label,
                "recording": clip.recording,
                "split": clip.split,
            }
            extension = job.options.encoding if job.images is None else "npy"
            place = write_record(file, record.bytes, clip.key, extension, payload, fields)
            record.bytes += place.record_size
            record.rows.append(Sample(clip.key, clip.label, clip.recording, clip.groups, place))
        record.bytes += file.write(END_OF_ARCHIVE)
        file.flush()
        os.fsync(file.fileno())
    if record.rejected and job.options.on_error == "stop":
        temporary.unlink()
        return record.rejected[0]
    record.sha256 = sha256_of_file(temporary)
    rows = [(*row[:3], *row.groups, *row.place) for row in record.rows]
    replace_file(record_path, work, json.dumps({**vars(record), "rows": rows}).encode())
    temporary.rename(target)
    sync(job.out)
    return record


def _read_record(path: Path, groups: int) -> ShardRecord | None:
    """Returns the record of a shard; None if it is unusable and the shard has to be made again."""
    end = 3 + groups
    try:
        document = read_json(path, dict[str, object], max_bytes=MAX_RECORD)
        flat = typed(document.get("rows"), list[list[object]])
        rows = [(*row[:3], row[3:end], row[end:]) for row in flat]
        record = typed({**document, "rows": rows}, ShardRecord)
    except (UserError, DocumentError):
        return None
    return record


def _payloads(job: ShardJob, record: ShardRecord) -> Iterator[tuple[Clip, bytes]]:
    """Yields each usable clip with its bytes; adds bad, clipped and silent ones to the record."""
    options = job.options
    if job.images is not None:
        header = _npy_header(job.images.shape[1:])
        for clip, image in zip(job.clips, job.images, strict=True):
            yield clip, header + image.tobytes()
        return
    clips = _from_files(job, record) if job.spooled is None else _from_spool(job, job.spooled)
    for clip, samples in clips:
        if samples.min() == samples.max():
            record.silent.append(clip.key)
        yield clip, encode(samples, options.sample_rate, options.encoding)


def _from_spool(job: ShardJob, spooled: Spooled) -> Iterator[tuple[Clip, Clips]]:
    for clip in job.clips:
        if clip.name in spooled:
            samples = read_spooled(spooled[clip.name], clip.start, job.options)
            if samples is not None:
                yield clip, samples


def _from_files(job: ShardJob, record: ShardRecord) -> Iterator[tuple[Clip, Clips]]:
    # Every file has one clip here: longer recordings are spooled.
    options = job.options
    for clip in job.clips:
        try:
            recording = load(clip.file, options.sample_rate)
            _refuse_longer(len(recording.samples), job)
        except BadFile as reason:
            record.rejected.append(Bad(clip.name, str(reason)))
            if options.on_error == "stop":
                return
            continue
        if recording.clipped:
            record.clipped[clip.name] = recording.clipped
        if options.count_clips(len(recording.samples)):
            yield clip, cut(recording.samples, 0, options.length)


def _refuse_longer(samples: int, job: ShardJob) -> None:
    # Files of a source of single clips may be a few samples longer.
    if job.one_clip and samples > 1.01 * job.options.length:
        seconds = samples / job.options.sample_rate
        raise BadFile(f"it lasts {seconds:.2f} s and not {job.options.seconds:g} s")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.empty(shape, dtype=np.uint8), version=(1, 0))
    return buffer.getvalue()[: -int(np.prod(shape))]
