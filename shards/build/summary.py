"""What is in a dataset, or will be: for people and for programs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.build.audit import Audit, plan_audit
from shards.build.plan import Plan
from shards.files.documents import DocumentError, parse_json
from shards.manifest import Manifest
from shards.reader import open_dataset
from shards.sources.names import printable

# So many values of a column are listed; of more, only how many there are.
MOST_VALUES = 50
MOST_REASONS = 20


def summarise(location: str | Path) -> dict[str, Any]:
    """Describes a dataset with what JSON can hold.

    Raises:
        UserError: if it cannot be opened.
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
        "audit": audit_of(manifest),
        "source": manifest.source,
        "sha256": dataset.fingerprint,
    }


def audit_of(manifest: Manifest) -> dict[str, Any] | None:
    """Returns what became of the source's files, or None of a dataset that does not say it."""
    try:
        return asdict(parse_json(json.dumps(manifest.source.get("audit")), Audit))
    except DocumentError:
        return None


def info_lines(info: dict[str, Any]) -> list[str]:
    """Returns `summarise`'s result as lines of text."""
    what = f"{info['clips']:,} {'clips' if info['kind'] == 'audio' else 'images'}"
    if info["hours"] is not None:
        what += f", {info['hours']:.2f} hours at {info['sample_rate']:,} Hz"
    lines = [
        f"{info['path']}: {what}, {info['dtype']} {info['shape']} as {info['encoding']}",
        f"{info['shards']} shards, {info['bytes'] / 1e9:.3f} GB, from {info['source'].get('kind')}",
        "",
        *class_table({name: split["per_class"] for name, split in info["splits"].items()}),
        "",
    ]
    for name, split in info["splits"].items():
        lines.append(f"{name}: {split['count']:,} of {split['recordings']:,} recordings")
        for key, counts in split.items():
            if key.startswith("per_") and key != "per_class":
                listed = ", ".join(f"{value} {count:,}" for value, count in counts.items())
                if len(counts) > MOST_VALUES:
                    listed = f"{len(counts):,} values"
                lines.append(f"  {key.replace('_', ' ')}: {listed}")
    if info["audit"] is not None:
        lines += ["", *audit_lines(info["audit"], info["kind"])]
    elif info["rejected"]:
        lines.append(f"{info['rejected']:,} bad files left out")
    lines.append(f"sha256 {info['sha256']}")
    return [printable_line(line) for line in lines]


def printable_line(line: str) -> str:
    """Returns a line without what would break it; a backslash stays one."""
    return line if line.isprintable() else printable(line).replace("\\\\", "\\")


def class_table(splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns clips by class and split as the lines of a table."""
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


def audit_lines(audit: Mapping[str, Any], kind: str) -> list[str]:
    """Returns what became of the source's files as lines of text."""
    one, clips = ("file", "clips") if kind == "audio" else ("image", "images")
    rows = [
        (f"{one}s found", audit["found"]),
        ("  used", audit["used"]),
        ("  left aside", audit["found"] - audit["used"]),
        *((f"    {reason}", count) for reason, count in _most(audit["left_aside"])),
        *((f"folders: {kind}", count) for kind, count in audit["folders"].items()),
        (f"{one}s used without their rest, too short for a clip", audit.get("rests")),
        (f"{one}s used that are copies of others", audit["copies"]),
        (f"{one}s used with samples louder than full scale (clipped)", audit["clipped"]),
        (f"{clips} that are silent", audit["silent"]),
        (f"{clips} that are the same as another", audit["repeated"]),
        *(
            (f"  {clips} of {split} in a split before too", n)
            for split, n in audit["seen_before"].items()
        ),
    ]
    return [
        *_table([(what, f"{count:,}") for what, count in rows if count is not None]),
        *audit["notes"],
        *(f"warning: {warning}" for warning in audit["warnings"]),
    ]


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns as many counts as are read at a glance, the rest in one."""
    if len(counts) <= MOST_REASONS:
        return list(counts.items())
    rare = sorted(counts, key=lambda reason: counts[reason])[: len(counts) - MOST_REASONS + 1]
    shown = [(reason, count) for reason, count in counts.items() if reason not in rare]
    return [*shown, (f"{len(rare)} other reasons", sum(counts[reason] for reason in rare))]


def closing_lines(manifest: Manifest, said: Sequence[str]) -> list[str]:
    """Returns what a build says at its end, beside the warnings that it has said at its beginning."""
    audit = audit_of(manifest)
    lines = class_table({name: split["classes"] for name, split in manifest.splits.items()})
    if audit is not None:
        new = [warning for warning in audit["warnings"] if warning not in said]
        lines += ["", *audit_lines({**audit, "warnings": new}, manifest.kind)]
    if said:
        lines.append(f"{len(said)} warning{'s' if len(said) > 1 else ''} above")
    return [printable_line(line) for line in lines]


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
        "ignored_files": sum(plan.source.aside.values()),
        "audit": asdict(plan_audit(plan)),
        "bad_files": [{"filename": bad.filename, "reason": bad.reason} for bad in plan.bad],
    }


def plan_lines(summary: dict[str, Any]) -> list[str]:
    """Returns `plan_summary`'s result as lines of text."""
    lines = [
        f"{summary['audit']['used']:,} files become {summary['shards']} shards, "
        f"about {summary['bytes'] / 1e9:.3f} GB",
        "",
        *class_table({name: split["per_class"] for name, split in summary["splits"].items()}),
        "",
        *audit_lines(summary["audit"], summary["kind"]),
    ]
    lines.extend(f"bad: {bad['filename']}: {bad['reason']}" for bad in summary["bad_files"])
    return [printable_line(line) for line in lines]
