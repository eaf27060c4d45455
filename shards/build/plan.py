"""Plan of a build: a pure function of options and inputs, made before anything is written."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.build.layout import Clip, lay_out
from shards.build.options import BuildOptions
from shards.build.remarks import Remarks, remarks
from shards.build.scan import Bad, Scan, scan
from shards.build.splits import carve_validation, draw_splits, joined, refuse_parted
from shards.errors import UserError
from shards.manifest import FORMAT, SPLITS
from shards.sources.source import Item, Source

__all__ = ["Bad", "BuildOptions", "Clip", "Plan", "bad_file_error", "make_plan", "shape_of"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a build: all shards with their clips in order.

    Attributes:
        options: options of the build.
        source: source of the clips.
        shards: (file name, split, clips) of each.
        bad: bad files found while planning.
        short: files too short for a clip.
        rests: number of files that end in a remainder too short for a clip.
        copies: groups of names of files with the same bytes.
        remarks: notes and warnings, known before decoding.
        bytes: expected total size of the shards.
        sha256: hash of all that determines the dataset, with the sizes of the files but not their times.
        inputs: hash that includes the times too, to detect a file that changes between two runs.
    """

    options: BuildOptions
    source: Source
    shards: list[tuple[str, str, list[Clip]]]
    bad: list[Bad]
    short: list[str]
    rests: int
    copies: list[list[str]]
    remarks: Remarks
    bytes: int
    sha256: str
    inputs: str

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of clips by split and class."""
        table = {split: Counter[int]() for split in SPLITS}
        for _, split, clips in self.shards:
            table[split].update(clip.label for clip in clips)
        return {
            split: {name: of[label] for label, name in enumerate(self.source.classes)}
            for split, of in table.items()
            if of
        }


def make_plan(options: BuildOptions, workers: int) -> Plan:
    """Plans a build: reads the source's lists and headers; assigns a split and a shard to every clip.

    Raises:
        UserError: the source is unusable; or `on_error` is "stop", and a file is bad or a class has no
            clip.
    """
    source = options.source_kind.read(options)
    if options.on_error == "stop":
        for folder, content in source.empty.items():
            raise UserError(
                f"the class folder {folder} has no audio files{content and f' ({content})'}; "
                "fill or remove it, or leave the class out with --on-error skip"
            )
    found = scan(source, options, workers)
    if found.bad and options.on_error == "stop":
        raise bad_file_error(found.bad[0], options)
    if not found.items:
        raise UserError(f"{options.source}: none of its {len(source.items):,} files can be used")
    source, found, lost = _without_lost(source, found, options)
    units = joined([item.together or item.name for item in found.items], found.copies)
    items = _with_splits(found, units, source, options)
    shards = lay_out(items, found.clips_of, source, options)
    record = _sample_bytes(source, options)
    # Without the paths of the files: a copy elsewhere gives the same dataset.
    placed = [[name, *clip._replace(file="")] for name, _, clips in shards for clip in clips]
    arguments = options.arguments()
    # These options only determine the clips and their places, which are hashed themselves: a dataset
    # built by a version without these options has the same hash if its clips have the same places.
    for name in ("min_sound", "keep_together", "layout", "folds"):
        del arguments[name]
    decisive = [FORMAT, arguments, source.kind, source.classes, source.groups]
    inputs = [sorted(source.lists.items()), [size for size, _ in found.stats], found.bad]
    text = json.dumps([decisive, inputs, placed])
    drawn = not any(item.split for item in found.items)
    return Plan(
        options=options,
        source=source,
        shards=shards,
        bad=found.bad,
        short=[item.name for item in found.short],
        rests=found.rests,
        copies=[[found.items[place].name for place in places] for places in found.copies],
        remarks=remarks(items, units, found, source, options, drawn=drawn, lost=lost),
        bytes=record * sum(found.clips_of),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        inputs=hashlib.sha256(json.dumps([text, found.stats]).encode()).hexdigest(),
    )


def bad_file_error(bad: Bad, options: BuildOptions) -> UserError:
    """Returns the error that ends a build at its first bad file."""
    return UserError(
        f"{bad.filename} in {options.source} is bad: {bad.reason}; "
        "mend or remove it, or use --on-error skip"
    )


def _without_lost(
    source: Source, found: Scan, options: BuildOptions
) -> tuple[Source, Scan, list[str]]:
    """Returns source and scan without the classes that have no usable file, and their names.

    Raises:
        UserError: there is one, and `on_error` is "stop".
    """
    there = {item.label for item in found.items}
    lost = [name for label, name in enumerate(source.classes) if label not in there]
    if not lost or source.fixed_classes:
        return source, found, []
    if options.on_error == "stop":
        raise UserError(
            f"{options.source}: nothing is left of the class {lost[0]}: all its files are shorter than "
            "a clip; use --short pad, or leave the class out with --on-error skip"
        )
    classes = [name for name in source.classes if name not in lost]
    number = {label: classes.index(source.classes[label]) for label in there}
    items = [item._replace(label=number[item.label]) for item in found.items]
    return replace(source, classes=tuple(classes)), replace(found, items=items), lost


def _with_splits(
    found: Scan, units: Sequence[str], source: Source, options: BuildOptions
) -> list[Item]:
    items, clips_of = found.items, found.clips_of
    labels = [item.label for item in items]
    if not any(item.split for item in items):
        split_of = draw_splits(units, labels, clips_of, options.fractions, options.seed)
        return [i._replace(split=split_of[unit]) for i, unit in zip(items, units, strict=True)]
    known = [item for item in items if item.together]
    refuse_parted(source.unit, [i.together for i in known], [i.split for i in known])
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
        item._replace(split="val") if item.split == "train" and unit in taken else item
        for item, unit in zip(items, units, strict=True)
    ]


def _sample_bytes(source: Source, options: BuildOptions) -> int:
    images = source.images
    payload = 44 + 2 * options.length if images is None else 128 + int(images[0].size)
    return 512 + -(-payload // 512) * 512 + 1024


def shape_of(plan: Plan) -> tuple[int, ...]:
    """Returns the shape of one sample."""
    images: NDArray[np.uint8] | None = plan.source.images
    return (plan.options.length,) if images is None else images.shape[1:]
