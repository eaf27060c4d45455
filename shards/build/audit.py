"""Audit of a build: how many files were used, left out and why, and properties of the clips."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.build.copies import same_clips
from shards.build.plan import Bad, Plan
from shards.build.shard_job import ShardRecord
from shards.manifest import SPLITS


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Audit of a build; `source.audit` in `dataset.json`.

    Attributes:
        found: files of the source, including those that are not audio.
        used: files that clips were cut from.
        left_aside: number of the other files by reason.
        folders: number of folders by kind, of those that were not simply listed.
        rests: files that end in a remainder too short for a clip, which is dropped.
        copies: files with the same bytes as another file that is used.
        clipped: files with samples beyond full scale, which were clipped to it.
        silent: clips whose samples are all equal.
        repeated: clips, not silent, that are equal to another clip.
        seen_before: by split, its clips that are also in an earlier split (train, val, test).
        kept_together: unit that is never divided among splits: "file", or a column.
        notes: how the source was read.
        warnings: problems of the source.

    Fields that are only known after decoding are None for a plan.
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
    """Returns the audit of a plan: what is known before decoding."""
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
    """Returns the number of files found, and the number of unused ones by reason."""
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
    records: Sequence[ShardRecord],
    folder: Path,
) -> Audit:
    """Returns the audit of a finished build.

    Args:
        plan: of the build.
        bad: all bad files, including those of the plan.
        clipped: number of samples beyond full scale by file name.
        records: of all shards.
        folder: of the shards.
    """
    name_of = {clip.key: clip.name for _, _, clips in plan.shards for clip in clips}
    keys = [row.key for record in records for row in record.rows]
    splits = [record.split for record in records for _ in record.rows]
    places = [(record.name, row.place) for record in records for row in record.rows]
    silent = {key for record in records for key in record.silent}
    used = {name_of[key] for key in keys}
    heard = [row for row, key in enumerate(keys) if key not in silent]
    same = same_clips(heard, places, folder)
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
    for label in sorted(planned - {row.label for record in records for row in record.rows}):
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
    """Returns a reason without the details of a single file."""
    return re.sub(r"\d[\d.,]*", "…", reason.partition(": ")[0])
