"""Summaries of a dataset and of a build's plan, as JSON and as text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from shards.build.audit import Audit, plan_audit
from shards.build.plan import Plan
from shards.files.documents import DocumentError, typed
from shards.manifest import Manifest
from shards.reader import Dataset
from shards.sources.names import printable

MAX_VALUES = 50  # values of a column that are listed; of more, only their number is shown
MAX_REASONS = 20


def summarise(dataset: Dataset) -> dict[str, object]:
    """Returns the JSON document that describes a dataset."""
    manifest = dataset.manifest
    splits = {
        name: {
            "count": count,
            "per_class": manifest.splits[name]["classes"],
            "recordings": _recordings(dataset, name),
            **{f"per_{group}": counts for group, counts in _per_group(dataset, name).items()},
        }
        for name, count in dataset.splits.items()
    }
    audit = audit_of(manifest)
    return {
        "path": str(dataset.path),
        "kind": dataset.kind,
        "classes": list(dataset.classes),
        "clips": len(dataset),
        "splits": splits,
        "hours": _hours(dataset),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
        "sample_rate": dataset.sample_rate,
        "shape": list(dataset.shape),
        "dtype": dataset.dtype.name,
        "encoding": manifest.encoding,
        "groups": list(dataset.groups),
        "rejected": manifest.rejected["count"] if manifest.rejected else 0,
        "audit": audit and asdict(audit),
        "source": manifest.source,
        "sha256": dataset.fingerprint,
    }


def audit_of(manifest: Manifest) -> Audit | None:
    """Returns the audit of the build; None if the dataset is older than audits."""
    try:
        return typed(manifest.source.get("audit"), Audit)
    except DocumentError:
        return None


def info_lines(dataset: Dataset) -> list[str]:
    """Returns the lines of text that describe a dataset."""
    manifest = dataset.manifest
    what = f"{len(dataset):,} {'clips' if dataset.kind == 'audio' else 'images'}"
    if (hours := _hours(dataset)) is not None:
        what += f", {hours:.2f} hours at {dataset.sample_rate:,} Hz"
    size = sum(shard.bytes for shard in manifest.shards)
    lines = [
        f"{dataset.path}: {what}, {dataset.dtype} {list(dataset.shape)} as {manifest.encoding}",
        f"{len(manifest.shards)} shards, {size / 1e9:.3f} GB, from {manifest.source.get('kind')}",
        "",
        *_class_table(manifest),
        "",
    ]
    for name, count in dataset.splits.items():
        lines.append(f"{name}: {count:,} of {_recordings(dataset, name):,} recordings")
        for group, counts in _per_group(dataset, name).items():
            listed = ", ".join(f"{value} {count:,}" for value, count in counts.items())
            if len(counts) > MAX_VALUES:
                listed = f"{len(counts):,} values"
            lines.append(f"  per {group.replace('_', ' ')}: {listed}")
    if (audit := audit_of(manifest)) is not None:
        lines += ["", *audit_lines(audit, dataset.kind)]
    elif manifest.rejected:
        lines.append(f"{manifest.rejected['count']:,} bad files left out")
    lines.append(f"sha256 {dataset.fingerprint}")
    return [printable_line(line) for line in lines]


def _hours(dataset: Dataset) -> float | None:
    if dataset.sample_rate is None:
        return None
    return round(len(dataset) * dataset.shape[0] / dataset.sample_rate / 3600, 4)


def _recordings(dataset: Dataset, split: str) -> int:
    return len(set(dataset.split(split).column("recording").tolist()))


def _per_group(dataset: Dataset, split: str) -> dict[str, dict[str, int]]:
    """Returns the number of clips by value, of each group but the location."""
    return {
        group: dict(sorted(Counter(dataset.split(split).column(group).tolist()).items()))
        for group in dataset.groups
        if group != "location"
    }


def printable_line(line: str) -> str:
    """Returns a line without what would break it; a backslash stays one."""
    return line if line.isprintable() else printable(line).replace("\\\\", "\\")


def _class_table(manifest: Manifest) -> list[str]:
    return class_table({name: split["classes"] for name, split in manifest.splits.items()})


def class_table(splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns the lines of a table of clips by class and split."""
    classes = list(next(iter(splits.values()), {}))
    rows = [["clips", *splits, "all"]]
    rows += [[name, *_with_sum([split[name] for split in splits.values()])] for name in classes]
    rows.append(["all", *_with_sum([sum(split.values()) for split in splits.values()])])
    return _table(rows)


def _with_sum(counts: Sequence[int]) -> list[str]:
    return [f"{count:,}" for count in (*counts, sum(counts))]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def audit_lines(audit: Audit, kind: str) -> list[str]:
    """Returns the lines of text that show an audit."""
    one, clips = ("file", "clips") if kind == "audio" else ("image", "images")
    rows = [
        (f"{one}s found", audit.found),
        ("  used", audit.used),
        ("  left aside", audit.found - audit.used),
        *((f"    {reason}", count) for reason, count in _most(audit.left_aside)),
        *((f"folders: {kind}", count) for kind, count in audit.folders.items()),
        (f"{one}s used without their rest, too short for a clip", audit.rests),
        (f"{one}s used that are copies of others", audit.copies),
        (f"{one}s used with samples louder than full scale (clipped)", audit.clipped),
        (f"{clips} that are silent", audit.silent),
        (f"{clips} that are the same as another", audit.repeated),
        *(
            (f"  {clips} of {split} in a split before too", count)
            for split, count in audit.seen_before.items()
        ),
    ]
    return [
        *_table([(what, f"{count:,}") for what, count in rows if count is not None]),
        *audit.notes,
        *(f"warning: {warning}" for warning in audit.warnings),
    ]


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns at most `MAX_REASONS` counts; the last is the sum of the smallest if there are more."""
    if len(counts) <= MAX_REASONS:
        return list(counts.items())
    rare = sorted(counts, key=lambda reason: counts[reason])[: len(counts) - MAX_REASONS + 1]
    shown = [(reason, count) for reason, count in counts.items() if reason not in rare]
    return [*shown, (f"{len(rare)} other reasons", sum(counts[reason] for reason in rare))]


def closing_lines(manifest: Manifest, said: Sequence[str]) -> list[str]:
    """Returns the lines that a build ends with, without the warnings that it began with (`said`)."""
    audit = audit_of(manifest)
    lines = _class_table(manifest)
    if audit is not None:
        new = [warning for warning in audit.warnings if warning not in said]
        lines += ["", *audit_lines(replace(audit, warnings=new), manifest.kind)]
    if said:
        lines.append(f"{len(said)} warning{'s' if len(said) > 1 else ''} above")
    return [printable_line(line) for line in lines]


def plan_summary(plan: Plan) -> dict[str, object]:
    """Returns the JSON document that describes what a build would do."""
    shards = Counter(split for _, split, _ in plan.shards)
    return {
        "kind": plan.source.kind,
        "classes": list(plan.source.classes),
        "splits": {
            split: {"count": sum(counts.values()), "shards": shards[split], "per_class": counts}
            for split, counts in plan.counts().items()
        },
        "shards": len(plan.shards),
        "bytes": plan.bytes,
        "files": len(plan.source.items),
        "ignored_files": sum(plan.source.aside.values()),
        "audit": asdict(plan_audit(plan)),
        "bad_files": [{"filename": bad.filename, "reason": bad.reason} for bad in plan.bad],
    }


def plan_lines(plan: Plan) -> list[str]:
    """Returns the lines of text that describe what a build would do."""
    audit = plan_audit(plan)
    lines = [
        f"{audit.used:,} files become {len(plan.shards)} shards, about {plan.bytes / 1e9:.3f} GB",
        "",
        *class_table(plan.counts()),
        "",
        *audit_lines(audit, plan.source.kind),
        *(f"bad: {bad.filename}: {bad.reason}" for bad in plan.bad),
    ]
    return [printable_line(line) for line in lines]
