"""What became of every file and clip of a source: counted at the end of a build, and shown again."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shards.build.copies import same_clips
from shards.build.plan import Bad, Plan
from shards.manifest import SPLITS


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What `dataset.json` says of it, as `source.audit`.

    Attributes:
        found: files of the source, those that are no audio included.
        used: files that clips were cut from.
        left_aside: reason to number of the other files.
        folders: kind to number of folders that were not simply listed.
        rests: files that end in a rest too short for a clip, which is dropped.
        copies: files that hold the same bytes as another that is used.
        clipped: files with samples louder than full scale, which were set to it.
        silent: clips whose samples are all the same.
        repeated: clips, not silent, that are the same as another clip.
        seen_before: split to number of its clips that are in a split before it too (train, val, test).
        kept_together: what is never parted: "file", or a column.
        notes: how the source was read.
        warnings: what is wrong.

    Of a plan, what is known after decoding alone is None.
    """

    found: int
    used: int
    left_aside: dict[str, int]
    folders: dict[str, int]
    rests: int
    copies: int
    kept_together: str
    notes: list[str]
    warnings: list[str]
    clipped: int | None = None
    silent: int | None = None
    repeated: int | None = None
    seen_before: dict[str, int] = field(default_factory=dict)


def plan_audit(plan: Plan) -> Audit:
    """Returns what is known before anything is decoded."""
    names = {clip.name for _, _, clips in plan.shards for clip in clips}
    found, aside = _left_aside(plan, plan.bad, len(names))
    return Audit(
        found=found,
        used=len(names),
        left_aside=aside,
        folders={kind: count for kind, count in sorted(plan.source.folders.items()) if count},
        rests=plan.rests,
        copies=sum(len(same) - 1 for same in plan.copies),
        kept_together=plan.source.unit,
        notes=plan.remarks.notes,
        warnings=plan.remarks.warnings,
    )


def _left_aside(plan: Plan, bad: Sequence[Bad], used: int) -> tuple[int, dict[str, int]]:
    """Returns how many files were found, and reason to number of those that were not used."""
    aside = Counter(plan.source.aside)
    found = len(plan.source.items) + len(plan.source.bad) + aside.total()
    aside.update(f"bad: {_kind(reason)}" for _, reason in bad)
    aside["shorter than a clip"] += len(plan.short)
    aside["nothing to cut a clip from"] += found - used - aside.total()
    return found, {reason: count for reason, count in sorted(aside.items()) if count}


def audit(
    plan: Plan,
    bad: Sequence[Bad],
    clipped: Mapping[str, int],
    silent: Collection[str],
    columns: dict[str, list[Any]],
    folder: Path,
) -> Audit:
    """Returns what became of all files and clips.

    Args:
        plan: of the build.
        bad: the bad files, those of the plan included.
        clipped: file name to samples louder than full scale.
        silent: keys of silent clips.
        columns: of the index.
        folder: of the shards.
    """
    shard_of, name_of = {}, {}
    for shard, _, clips in plan.shards:
        for clip in clips:
            name_of[clip.key] = clip.name
            shard_of[clip.key] = shard
    keys = columns["key"]
    used = {name_of[key] for key in keys}
    heard = [row for row, key in enumerate(keys) if key not in silent]
    where = [shard_of[key] for key in keys]
    same = same_clips(heard, {**columns, "shard_name": where}, folder)
    splits = columns["split"]
    seen_before = Counter[str]()
    warnings = list(plan.remarks.warnings)
    for number, split in enumerate(SPLITS):
        before = SPLITS[:number]
        pairs = [
            (row, first)
            for rows in same
            for first in [next((row for row in rows if splits[row] in before), None)]
            for row in rows
            if first is not None and splits[row] == split
        ]
        if pairs:
            seen_before[split] = len(pairs)
            row, first = pairs[0]
            warnings.append(
                f"{len(pairs):,} of the {splits.count(split):,} clips of {split} "
                f"{'are' if len(pairs) > 1 else 'is'} in {' or '.join(before)} too, such as {keys[row]} "
                f"(in {splits[first]}: {keys[first]}), so that figures look better than they are: "
                "remove the files of one"
            )
    planned = {clip.label for _, _, clips in plan.shards for clip in clips}
    for label in sorted(planned - set(columns["label"])):
        warnings.append(
            f"all files of the class {plan.source.classes[label]} are bad: it has no clips"
        )
    return replace(
        plan_audit(plan),
        used=len(used),
        left_aside=_left_aside(plan, bad, len(used))[1],
        warnings=warnings,
        clipped=len(used & clipped.keys()),
        silent=len(silent),
        repeated=sum(len(rows) - 1 for rows in same),
        seen_before=dict(seen_before),
    )


def _kind(reason: str) -> str:
    """Returns a reason without what is of one file alone."""
    return re.sub(r"\d[\d.,]*", "…", reason.partition(": ")[0])
