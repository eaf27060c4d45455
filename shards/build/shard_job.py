"""One shard, made by one process and kept with a record of its rows."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from shards.audio.clips import cut, encode
from shards.audio.load import BadFile, Clips, load
from shards.build.plan import BuildOptions, Clip
from shards.build.spool import Spooled, read_spooled
from shards.build.tar import END_OF_ARCHIVE, Record, write_record
from shards.errors import UserError
from shards.files.atomic import replace_file, sync, temporary_name, unfinished
from shards.files.documents import DocumentError, read_json, typed
from shards.manifest import WORK_NAME, sha256_of_file

MOST_RECORD = 256 << 20  # bytes: that of a shard of a million clips


@dataclass(frozen=True)
class ShardJob:
    """All that one process needs to make one shard."""

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


@dataclass
class Found:
    """What was found out about the files of a shard.

    Attributes:
        rejected: name of a bad file to the reason.
        clipped: name to samples louder than full scale.
        silent: keys of clips whose samples are all the same.
    """

    rejected: dict[str, str] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)


def make_shard(job: ShardJob) -> dict[str, Any]:
    """Writes one shard, unless it is there already.

    Returns:
        Its record: name, split, bytes, sha256, rows (one list a sample, in the order of the index's
        columns), clipped (file name to samples louder than full scale; those of spooled recordings are
        in their own records), silent (keys of clips) and rejected files; or only `bad`, if a file is
        bad and the build is to stop.
    """
    work = job.out / WORK_NAME
    target, record_path = job.out / job.name, work / f"{job.name}.json"
    if record_path.is_file() and target.is_file():
        kept = _read_record(record_path, len(job.groups))
        if kept is not None and sha256_of_file(target) == kept["sha256"]:
            return kept
    temporary = work / temporary_name(job.name)
    rows: list[list[Any]] = []
    found = Found()
    rejected = found.rejected
    with unfinished(temporary), temporary.open("wb", buffering=1 << 20) as file:
        offset = 0
        for clip, payload in _payloads(job, found):
            if rejected and job.options.on_error == "stop":
                break
            groups = dict(zip(job.groups, clip.groups, strict=True))
            fields = {
                **groups,
                "class": job.classes[clip.label],
                "label": clip.label,
                "recording": clip.recording,
                "split": clip.split,
            }
            extension = job.options.encoding if job.images is None else "npy"
            placed = write_record(file, offset, clip.key, extension, payload, fields)
            offset += placed.record_size
            rows.append([clip.key, clip.label, clip.recording, *clip.groups, *placed])
        file.write(END_OF_ARCHIVE)
        file.flush()
        os.fsync(file.fileno())
    if rejected and job.options.on_error == "stop":
        temporary.unlink()
        return {"bad": next(iter(rejected.items()))}
    record = {
        "name": job.name,
        "split": job.split,
        "bytes": offset + len(END_OF_ARCHIVE),
        "sha256": sha256_of_file(temporary),
        "rows": rows,
        "clipped": found.clipped,
        "silent": found.silent,
        "rejected": list(rejected.items()),
    }
    replace_file(record_path, work, json.dumps(record).encode())
    temporary.rename(target)
    sync(job.out)
    return record


class _Record(TypedDict):
    """What a shard's record holds beside its rows."""

    name: str
    split: str
    bytes: int
    sha256: str
    clipped: NotRequired[dict[str, int]]
    silent: NotRequired[list[str]]
    rejected: list[tuple[str, str]]


def _read_record(path: Path, groups: int) -> dict[str, Any] | None:
    """Returns the record of a shard; None if it cannot be used, so that the shard is made anew."""
    row = (str, int, str, *[str] * groups, *[int] * len(Record._fields))
    try:
        record = read_json(path, dict[str, Any], max_bytes=MOST_RECORD)
        typed(record, _Record)
        typed(record.get("rows"), list[tuple[row]])  # type: ignore[valid-type]
    except (UserError, DocumentError):
        return None
    return record


def _payloads(job: ShardJob, found: Found) -> Iterator[tuple[Clip, bytes]]:
    """Yields the clips that can be made, as bytes; notes what is found out about their files."""
    options = job.options
    if job.images is not None:
        header = _npy_header(job.images.shape[1:])
        for clip, image in zip(job.clips, job.images, strict=True):
            yield clip, header + image.tobytes()
        return
    clips = _from_files(job, found) if job.spooled is None else _from_spool(job, job.spooled)
    for clip, samples in clips:
        if samples.min() == samples.max():
            found.silent.append(clip.key)
        yield clip, encode(samples, options.sample_rate, options.encoding)


def _from_spool(job: ShardJob, spooled: Spooled) -> Iterator[tuple[Clip, Clips]]:
    for clip in job.clips:
        if clip.name in spooled:
            samples = read_spooled(spooled[clip.name], clip.start, job.options)
            if samples is not None:
                yield clip, samples


def _from_files(job: ShardJob, found: Found) -> Iterator[tuple[Clip, Clips]]:
    # Here every file has one clip: longer recordings are spooled.
    options = job.options
    for clip in job.clips:
        try:
            recording = load(clip.file, options.sample_rate)
            _refuse_longer(len(recording.samples), job)
        except BadFile as reason:
            found.rejected[clip.name] = str(reason)
            if options.on_error == "stop":
                return
            continue
        if recording.clipped:
            found.clipped[clip.name] = recording.clipped
        if options.count_clips(len(recording.samples)):
            yield clip, cut(recording.samples, 0, options.length)


def _refuse_longer(samples: int, job: ShardJob) -> None:
    # A file of a source of single clips may be a sample or two longer, not more.
    if job.one_clip and samples > 1.01 * job.options.length:
        seconds = samples / job.options.sample_rate
        raise BadFile(f"it lasts {seconds:.2f} s and not {job.options.seconds:g} s")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.empty(shape, dtype=np.uint8), version=(1, 0))
    return buffer.getvalue()[: -int(np.prod(shape))]
