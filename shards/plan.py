"""What a build will do, decided before anything is written: a pure result of options and inputs."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.audio import BadFile, count_clips, measure
from shards.errors import InputError
from shards.manifest import FORMAT, SPLITS
from shards.order import permutation
from shards.progress import progress
from shards.sources.source import Item, Source
from shards.splits import carve_validation, draw_splits, refuse_parted
from shards.tar import LONGEST_KEY
from shards.workers import run_jobs

KINDS = ("tau2022", "folder", "table", "mnist")
FILES_PER_JOB = 256


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What is built from what. Everything here but the paths is part of the dataset's identity.

    Attributes:
        kind: one of `KINDS`.
        source: a folder, or the table.
        split_csv: for tau2022, a training subset such as split5.csv.
        fractions: of train, val and test where the source has no splits.
        val_fraction: of training, where the source has no validation split.
        seconds: length of a clip.
        sample_rate: Hz.
        encoding: "wav" or "flac".
        short: "pad" or "drop" what is shorter than a clip.
        shard_size: clips a shard, about.
        seed: of the splits and of the shuffle.
        on_error: "stop" at the first bad file or "skip" bad files.
        filename_column, label_column, split_column, group_columns, audio_root: for tables.
    """

    kind: str
    source: Path
    split_csv: Path | None = None
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    val_fraction: float = 0.1
    seconds: float = 1.0
    sample_rate: int = 32000
    encoding: str = "wav"
    short: str = "pad"
    shard_size: int = 4096
    seed: int = 0
    on_error: str = "stop"
    filename_column: str = "filename"
    label_column: str = "label"
    split_column: str | None = None
    group_columns: tuple[str, ...] = ()
    audio_root: Path | None = None

    def __post_init__(self) -> None:
        checks = {
            "kind": (self.kind in KINDS, ", ".join(KINDS)),
            "fractions": (
                len(self.fractions) == 3
                and min(self.fractions) >= 0
                and self.fractions[0] > 0
                and abs(sum(self.fractions) - 1) < 1e-6,
                "three numbers for train, val and test with the sum 1, train above 0",
            ),
            "val_fraction": (0 <= self.val_fraction < 1, "a number from 0 to below 1"),
            "seconds": (0 < self.seconds <= 3600, "a number above 0, at most 3600"),
            "sample_rate": (1000 <= self.sample_rate <= 384000, "1000 to 384000 Hz"),
            "encoding": (self.encoding in ("wav", "flac"), "wav or flac"),
            "short": (self.short in ("pad", "drop"), "pad or drop"),
            "shard_size": (self.shard_size >= 1, "a whole number above 0"),
            "seed": (self.seed >= 0, "a whole number, 0 or more"),
            "on_error": (self.on_error in ("stop", "skip"), "stop or skip"),
        }
        for name, (good, allowed) in checks.items():
            if not good:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} is {getattr(self, name)!r}; use {allowed}")
        if self.kind == "tau2022" and self.seconds != 1.0:
            raise InputError("--seconds: the clips of tau2022 last one second; leave it at 1.0")
        if self.split_csv is not None and self.kind != "tau2022":
            raise InputError("--split-csv is for tau2022; a table names its splits in a column")

    @property
    def length(self) -> int:
        """Samples of one clip."""
        return max(1, round(self.seconds * self.sample_rate))

    def arguments(self) -> dict[str, Any]:
        """Returns what decides the bytes of the dataset, beside its inputs."""
        document = asdict(self)
        for name in ("source", "split_csv", "audio_root"):
            del document[name]
        return json.loads(json.dumps(document))  # type: ignore[no-any-return]


class Clip(NamedTuple):
    """One sample to be made: clip number `start` of `file`, or image number `start`."""

    key: str
    name: str
    file: str
    start: int
    label: int
    split: str
    recording: str
    groups: tuple[str, ...]


class Bad(NamedTuple):
    """A source file that cannot be used, and why."""

    filename: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All shards with their clips in order.

    Attributes:
        options: what was asked for.
        source: where the clips come from.
        shards: (file name, split, clips).
        bad: files found bad while planning.
        bytes: expected size of the shards.
        sha256: of all that decides the dataset; sizes of the files included, times not.
        inputs: of sizes and times of the files, to notice a file changed between two runs.
    """

    options: BuildOptions
    source: Source
    shards: list[tuple[str, str, list[Clip]]]
    bad: list[Bad]
    bytes: int
    sha256: str
    inputs: str

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns split to class to clips."""
        table = {split: Counter[int]() for split in SPLITS}
        for _, split, clips in self.shards:
            table[split].update(clip.label for clip in clips)
        return {
            split: {name: of[label] for label, name in enumerate(self.source.classes)}
            for split, of in table.items()
            if of
        }


def make_plan(options: BuildOptions, workers: int, *, show: bool = False) -> Plan:
    """Reads the source's lists and headers and decides every clip's split, shard and place.

    Raises:
        InputError: if the source cannot be used, or with `on_error` "stop" at a bad file.
    """
    source = read_source(options)
    items, clips_of, stats, bad = _scan(source, options, workers, show=show)
    if bad and options.on_error == "stop":
        raise bad_file_error(bad[0], options)
    if not items:
        raise InputError(f"{options.source}: none of its {len(source.items):,} files can be used")
    items = _with_splits(items, clips_of, source, options)
    shards = _shards(items, clips_of, source, options)
    record = _sample_bytes(source, options)
    # Where the files lie is left out: a copy elsewhere gives the same dataset.
    placed = [[name, *clip._replace(file="")] for name, _, clips in shards for clip in clips]
    decisive = [FORMAT, options.arguments(), source.kind, source.classes, source.groups]
    inputs = [sorted(source.lists.items()), [size for size, _ in stats], bad]
    text = json.dumps([decisive, inputs, placed])
    return Plan(
        options=options,
        source=source,
        shards=shards,
        bad=bad,
        bytes=record * sum(clips_of),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        inputs=hashlib.sha256(json.dumps([text, stats]).encode()).hexdigest(),
    )


def read_source(options: BuildOptions) -> Source:
    """Reads the lists of the source.

    Raises:
        InputError: if they cannot be used.
    """
    from shards.sources import folder, mnist, table, tau2022

    if options.kind == "table":
        columns = table.Columns(
            filename=options.filename_column,
            label=options.label_column,
            split=options.split_column,
            groups=options.group_columns,
        )
        return table.read(options.source, columns, options.audio_root)
    if not options.source.is_dir():
        raise InputError(f"--source {options.source} does not exist or is not a folder")
    if options.kind == "tau2022":
        return tau2022.read(options.source, options.split_csv)
    return folder.read(options.source) if options.kind == "folder" else mnist.read(options.source)


def bad_file_error(bad: Bad, options: BuildOptions) -> InputError:
    """Returns the error that ends a build at its first bad file."""
    return InputError(
        f"{bad.filename} in {options.source} is bad: {bad.reason}; "
        "mend or remove it, or use --on-error skip"
    )


def _scan(
    source: Source, options: BuildOptions, workers: int, *, show: bool
) -> tuple[list[Item], list[int], list[tuple[int, int]], list[Bad]]:
    if source.images is not None:
        return source.items, [1] * len(source.items), [], []
    files = [item.file for item in source.items]
    jobs = [files[i : i + FILES_PER_JOB] for i in range(0, len(files), FILES_PER_JOB)]
    look = partial(_look, sample_rate=None if source.one_clip else options.sample_rate)
    found: dict[int, list[tuple[int, int, int | str]]] = {}
    with progress("Looking at files", len(files), show=show) as advance:
        for number, result in run_jobs(look, jobs, 1 if source.one_clip else workers):
            found[number] = result
            advance(len(result))
    items: list[Item] = []
    clips_of: list[int] = []
    stats: list[tuple[int, int]] = []
    bad: list[Bad] = []
    looks = [look for number in range(len(jobs)) for look in found[number]]
    for item, (size, time, length) in zip(source.items, looks, strict=True):
        stats.append((size, time))
        if isinstance(length, str):
            bad.append(Bad(item.name, length))
            continue
        clips = 1 if source.one_clip else count_clips(length, options.length, options.short)
        if clips:
            items.append(item)
            clips_of.append(clips)
    return items, clips_of, stats, bad


def _look(files: Sequence[str], sample_rate: int | None) -> list[tuple[int, int, int | str]]:
    """Returns (bytes, time in ns, samples or the reason why it is bad) of each file."""
    looks: list[tuple[int, int, int | str]] = []
    for file in files:
        try:
            status = os.stat(file)  # noqa: PTH116 (230,000 of them)
        except OSError:
            looks.append((0, 0, "no such file"))
            continue
        size, time = status.st_size, status.st_mtime_ns
        try:
            looks.append((size, time, measure(file, sample_rate) if sample_rate else 0))
        except BadFile as reason:
            looks.append((size, time, str(reason)))
    return looks


def _with_splits(
    items: list[Item], clips_of: list[int], source: Source, options: BuildOptions
) -> list[Item]:
    units = [_unit(item, source) for item in items]
    labels = [item.label for item in items]
    if not any(item.split for item in items):
        split_of = draw_splits(units, labels, options.fractions, options.seed)
        return [replace(i, split=split_of[unit]) for i, unit in zip(items, units, strict=True)]
    refuse_parted(source.unit, units, [item.split for item in items])
    if any(item.split == "val" for item in items):
        return items
    training = [place for place, item in enumerate(items) if item.split == "train"]
    taken = carve_validation(
        [units[place] for place in training],
        [labels[place] for place in training],
        [clips_of[place] for place in training],
        options.val_fraction,
        options.seed,
    )
    return [
        replace(item, split="val") if item.split == "train" and unit in taken else item
        for item, unit in zip(items, units, strict=True)
    ]


def _unit(item: Item, source: Source) -> str:
    if source.unit == "recording":
        return item.recording
    return item.groups[source.groups.index(source.unit)]


def _shards(
    items: list[Item], clips_of: list[int], source: Source, options: BuildOptions
) -> list[tuple[str, str, list[Clip]]]:
    image_of = {item.name: row for row, item in enumerate(source.items)}
    of_split: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    taken: set[str] = set()
    for item, count in zip(items, clips_of, strict=True):
        stem = _stem(item.name) if source.images is None else item.name
        for number in range(count):
            tail = f"-{number:05d}" if count > 1 else ""
            key = _key(stem, tail, item.name, taken)
            taken.add(key)
            start = number if source.images is None else image_of[item.name]
            of_split[item.split].append(
                Clip(
                    key,
                    item.name,
                    item.file,
                    start,
                    item.label,
                    item.split,
                    item.recording,
                    item.groups,
                )
            )
    shards: list[tuple[str, str, list[Clip]]] = []
    for place, split in enumerate(SPLITS):
        clips = of_split[split]
        if not clips:
            continue
        order = permutation(len(clips), options.seed, place, len(clips))
        parts = np.array_split(order, -(-len(clips) // options.shard_size))
        for number, part in enumerate(parts):
            chosen = [clips[i] for i in part.tolist()]
            shards.append((f"{split}-{number:06d}.tar", split, chosen))
    return shards


def _stem(name: str) -> str:
    """Returns a file name as a key: no folder named audio, no ending, no sign but - and _."""
    path = name.removeprefix("audio/")
    folder, _, base = path.rpartition("/")
    base = base.rpartition(".")[0] or base
    return re.sub(r"[^A-Za-z0-9_-]+", "_", f"{folder}/{base}" if folder else base)


def _key(stem: str, tail: str, name: str, taken: set[str]) -> str:
    if len(stem) + len(tail) <= LONGEST_KEY and stem + tail not in taken:
        return stem + tail
    # Two names that look the same as keys, or a very long one: tell them apart by a hash.
    mark = hashlib.sha256(name.encode()).hexdigest()[:12]
    key = f"{stem[: LONGEST_KEY - len(tail) - 13]}-{mark}{tail}"
    assert key not in taken
    return key


def _sample_bytes(source: Source, options: BuildOptions) -> int:
    images = source.images
    payload = 44 + 2 * options.length if images is None else 128 + int(images[0].size)
    return 512 + -(-payload // 512) * 512 + 1024


def shape_of(plan: Plan) -> tuple[int, ...]:
    """Returns the shape of one sample."""
    images: NDArray[np.uint8] | None = plan.source.images
    return (plan.options.length,) if images is None else images.shape[1:]
