"""What is in a dataset, or will be: for people and for programs."""

from collections import Counter
from pathlib import Path
from typing import Any

from shards.plan import Plan
from shards.reader import open_dataset


def summarise(location: str | Path) -> dict[str, Any]:
    """Describes a dataset with what JSON can hold.

    Raises:
        InputError: if it cannot be opened.
    """
    dataset = open_dataset(location)
    manifest = dataset.manifest
    splits: dict[str, Any] = {}
    for name, count in dataset.splits.items():
        split = dataset.split(name)
        per_group = {
            group: dict(sorted(Counter(split.column(group).tolist()).items()))
            for group in dataset.groups
            if group != "location"
        }
        splits[name] = {
            "count": count,
            "per_class": manifest.splits[name]["classes"],
            "recordings": len(set(split.column("recording").tolist())),
            **{f"per_{group}": counts for group, counts in per_group.items()},
        }
    hours = None
    if dataset.sample_rate is not None:
        hours = round(len(dataset) * dataset.shape[0] / dataset.sample_rate / 3600, 4)
    return {
        "path": str(dataset.path),
        "kind": dataset.kind,
        "classes": list(dataset.classes),
        "clips": len(dataset),
        "splits": splits,
        "hours": hours,
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
        "sample_rate": dataset.sample_rate,
        "shape": list(dataset.shape),
        "dtype": dataset.dtype.name,
        "encoding": manifest.encoding,
        "groups": list(dataset.groups),
        "rejected": manifest.rejected["count"] if manifest.rejected else 0,
        "source": manifest.source,
        "sha256": dataset.fingerprint,
    }


def info_lines(info: dict[str, Any]) -> list[str]:
    """Returns `summarise`'s result as lines of text."""
    what = f"{info['clips']:,} {'clips' if info['kind'] == 'audio' else 'images'}"
    if info["hours"] is not None:
        what += f", {info['hours']:.2f} hours at {info['sample_rate']:,} Hz"
    lines = [
        f"{info['path']}: {what}, {info['dtype']} {info['shape']} as {info['encoding']}",
        f"{info['shards']} shards, {info['bytes'] / 1e9:.3f} GB, from {info['source']['kind']}"
        + (f"; {info['rejected']} bad files left out" if info["rejected"] else ""),
    ]
    for name, split in info["splits"].items():
        lines.append(f"{name}: {split['count']:,} of {split['recordings']:,} recordings")
        for key, counts in split.items():
            if key.startswith("per_"):
                listed = ", ".join(f"{value} {count:,}" for value, count in counts.items())
                lines.append(f"  {key.replace('_', ' ')}: {listed}")
    lines.append(f"sha256 {info['sha256']}")
    return lines


def plan_summary(plan: Plan) -> dict[str, Any]:
    """Describes what a build would do with what JSON can hold."""
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
        "ignored_files": plan.source.ignored,
        "bad_files": [{"filename": bad.filename, "reason": bad.reason} for bad in plan.bad],
    }


def plan_lines(summary: dict[str, Any]) -> list[str]:
    """Returns `plan_summary`'s result as lines of text."""
    lines = [
        f"{summary['files']:,} files ({summary['ignored_files']:,} others ignored, "
        f"{len(summary['bad_files'])} bad) become {summary['shards']} shards, "
        f"about {summary['bytes'] / 1e9:.3f} GB"
    ]
    for name, split in summary["splits"].items():
        lines.append(f"{name}: {split['count']:,} in {split['shards']} shards")
        listed = ", ".join(f"{value} {count:,}" for value, count in split["per_class"].items())
        lines.append(f"  per class: {listed}")
    lines.extend(f"bad: {bad['filename']}: {bad['reason']}" for bad in summary["bad_files"])
    return lines
