"""What a build will do, decided before anything is written: a pure result of options and inputs."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.layout import Clip, lay_out
from shards.manifest import FORMAT, SPLITS
from shards.options import BuildOptions
from shards.scan import Bad, scan
from shards.sources.source import Item, Source
from shards.splits import carve_validation, draw_splits, refuse_parted

__all__ = ["Bad", "BuildOptions", "Clip", "Plan", "bad_file_error", "make_plan", "shape_of"]


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
    items, clips_of, stats, bad = scan(source, options, workers, show=show)
    if bad and options.on_error == "stop":
        raise bad_file_error(bad[0], options)
    if not items:
        raise InputError(f"{options.source}: none of its {len(source.items):,} files can be used")
    items = _with_splits(items, clips_of, source, options)
    shards = lay_out(items, clips_of, source, options)
    record = _sample_bytes(source, options)
    # Where the files lie is left out: a copy elsewhere gives the same dataset.
    placed = [[name, *clip._replace(file="")] for name, _, clips in shards for clip in clips]
    arguments = options.arguments()
    # It decides nothing but which clips there are, and those are listed below: a dataset of a version
    # without this option is the same if none of its clips would now be dropped.
    del arguments["min_sound"]
    decisive = [FORMAT, arguments, source.kind, source.classes, source.groups]
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


def _sample_bytes(source: Source, options: BuildOptions) -> int:
    images = source.images
    payload = 44 + 2 * options.length if images is None else 128 + int(images[0].size)
    return 512 + -(-payload // 512) * 512 + 1024


def shape_of(plan: Plan) -> tuple[int, ...]:
    """Returns the shape of one sample."""
    images: NDArray[np.uint8] | None = plan.source.images
    return (plan.options.length,) if images is None else images.shape[1:]
