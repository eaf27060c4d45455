"""Layout of a dataset: the shard and the key of every clip."""

import hashlib
import re
from typing import NamedTuple

import numpy as np

from shards.audio.file_range import AudioFile
from shards.build.options import BuildOptions
from shards.build.tar import LONGEST_KEY
from shards.manifest import SPLITS
from shards.order import permutation
from shards.sources.source import Item, Source


class Clip(NamedTuple):
    """Sample to be written: clip number `start` of `file`, or image number `start`."""

    key: str
    name: str
    file: AudioFile
    start: int
    label: int
    split: str
    recording: str
    groups: tuple[str, ...]


def lay_out(
    items: list[Item], clips_of: list[int], source: Source, options: BuildOptions
) -> list[tuple[str, str, list[Clip]]]:
    """Returns (file name, split, clips in order) of every shard."""
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
    """Returns a file name as a key: without a folder "audio", extension, or signs except - and _."""
    path = name.removeprefix("audio/")
    folder, _, base = path.rpartition("/")
    base = base.rpartition(".")[0] or base
    return re.sub(r"[^A-Za-z0-9_-]+", "_", f"{folder}/{base}" if folder else base)


def _key(stem: str, tail: str, name: str, taken: set[str]) -> str:
    if len(stem) + len(tail) <= LONGEST_KEY and stem + tail not in taken:
        return stem + tail
    # The key is taken by another name, or too long: a hash makes it unique.
    mark = hashlib.sha256(name.encode()).hexdigest()[:12]
    key = f"{stem[: LONGEST_KEY - len(tail) - 13]}-{mark}{tail}"
    assert key not in taken
    return key
