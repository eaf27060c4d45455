"""Clips to tar shards: parallel, resumable, atomic, reproducible to the byte.

A shard is written to the hidden work folder, synced and renamed; beside it a record of its rows is
kept, so that a build that was killed goes on with the shards it lacks. `dataset.json` comes last:
a folder that has one is finished. For the same reason several machines can each do a part, and a
build after them only has to join what they made.
"""

import csv
import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.build.audit import audit
from shards.build.output_folder import (
    PLAN_NAME,
    WORK_FILES,
    claim_dataset,
    delete_dataset,
    is_half_deleted,
    records_of,
)
from shards.build.plan import Bad, BuildOptions, Plan, bad_file_error, make_plan, shape_of
from shards.build.shard_job import ShardJob, make_shard
from shards.build.spool import Spooled, needs_spool, spool
from shards.build.summary import closing_lines, printable_line
from shards.errors import UserError
from shards.files.atomic import publish, replace_file, writing
from shards.files.locks import locked
from shards.files.ownership import read_mark, remove
from shards.manifest import (
    INDEX_NAME,
    INDEX_TYPES,
    MANIFEST_NAME,
    REJECTED_NAME,
    SPLITS,
    WORK_NAME,
    Manifest,
    RejectedFile,
    Shard,
    SplitCounts,
    canonical,
    parse_manifest,
    read_manifest,
    sha256_of,
    sha256_of_file,
    write_index,
)
from shards.progress import progress
from shards.workers import cpu_count, run_jobs


def build_dataset(
    options: BuildOptions,
    out: str | Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    show: bool = False,
) -> Manifest:
    """Builds a dataset folder, or finishes one that was interrupted.

    Args:
        options: what to build from what.
        out: the folder; it may be missing, empty, or a build with the same options.
        workers: processes; the CPUs of this machine if None. The bytes do not depend on it.
        overwrite: delete another dataset that is there, as far as its manifest lists it.
        show: show progress on standard error.

    Returns:
        The manifest of the finished dataset.

    Raises:
        UserError: if the source cannot be used, `out` holds something else, the disk is too small,
            or with `on_error` "stop" a file is bad.
    """
    folder, workers, plan = _planned(options, out, workers, show=show)
    work = folder / WORK_NAME
    if (folder / MANIFEST_NAME).exists() and not overwrite and not work.exists():
        return _close(folder, _finished(folder, plan), (), show=show)
    _refuse_small_disk(folder, plan)
    with _at_work(folder), writing(folder, "--out"):
        claim_dataset(folder)  # another build may have been there since
        if overwrite or is_half_deleted(folder):
            delete_dataset(folder)
        elif (folder / MANIFEST_NAME).exists():
            manifest = _finished(folder, plan)
            remove(work, WORK_FILES)
            return _close(folder, manifest, (), show=show)
        _claim(work, plan)
        _warn(plan, show=show)
        spooled, bad, clipped = (
            spool(plan, work, workers, show=show) if needs_spool(plan) else (None, [], {})
        )
        records = _make_shards(plan, _shard_jobs(plan, folder, spooled), workers, show=show)
        manifest = _finish(plan, folder, records, bad, clipped)
        remove(work, WORK_FILES)
    return _close(folder, manifest, plan.remarks.warnings, show=show)


def build_part(
    options: BuildOptions,
    out: str | Path,
    number: int,
    of: int,
    *,
    workers: int | None = None,
    show: bool = False,
) -> bool:
    """Does one part of a build, of several that may run at the same time on several machines.

    A part is every `of`-th shard or, of recordings longer than a clip, every `of`-th of the files
    they are decoded to. `build_dataset` joins them, and does what parts have left undone.

    Args:
        options: what to build from what; the same for all parts.
        out: the folder, on a disk that all machines share.
        number: of the part, from 1.
        of: how many parts there are.
        workers: processes; the CPUs of this machine if None.
        show: show progress on standard error.

    Returns:
        Whether the dataset is finished already.

    Raises:
        UserError: as `build_dataset`; also if there is no such part, or it is being done elsewhere.
    """
    if not 1 <= number <= of:
        raise UserError(f"--part {number} --of {of}: use --part 1 to --part {of}")
    folder, workers, plan = _planned(options, out, workers, show=show)
    work = folder / WORK_NAME
    if (folder / MANIFEST_NAME).exists():
        _finished(folder, plan)
        return True
    _refuse_small_disk(folder, plan)
    share = slice(number - 1, None, of)
    with _at_work(folder, part=f"part-{number}-of-{of}"), writing(folder, "--out"):
        claim_dataset(folder)
        if (folder / MANIFEST_NAME).exists():
            _finished(folder, plan)
            return True
        _claim(work, plan)
        _warn(plan, show=show)
        if needs_spool(plan):
            spool(plan, work, workers, show=show, share=share)
        else:
            _make_shards(plan, _shard_jobs(plan, folder, None)[share], workers, show=show)
    return False


def _finished(folder: Path, plan: Plan) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.source.get("plan") != plan.sha256:
        raise UserError(
            f"{folder} is a finished dataset of other arguments or other sources; "
            "name another --out, or use --overwrite to replace it"
        )
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UserError(
                f"{folder} is finished but {shard.name} is missing or cut short; "
                "copy it again, or use --overwrite to build it again"
            )
    return manifest


def _planned(
    options: BuildOptions, out: str | Path, workers: int | None, *, show: bool
) -> tuple[Path, int, Plan]:
    """Returns the folder, which may be written, the number of workers, and what is to be built."""
    folder = Path(out).absolute()
    workers = cpu_count() if workers is None else workers
    claim_dataset(folder)
    # The next build would take the dataset for a class.
    source = Path(options.source).resolve()
    if options.source_kind.walks_folder and source in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"--out {folder}: lies in --source {options.source}; name a place outside")
    return folder, workers, make_plan(options, workers, show=show)


def _refuse_small_disk(folder: Path, plan: Plan) -> None:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    made = [path for name in ("*.tar", f"{WORK_NAME}/spool-*.pcm") for path in folder.glob(name)]
    have = sum(path.stat().st_size for path in made)
    # FLAC takes half of it at most of the time, but noise takes it all.
    needed = 2 * plan.bytes if needs_spool(plan) else plan.bytes
    if needed - have > free:
        raise UserError(
            f"--out {folder}: the build takes {needed / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free on that disk; name another place"
        )


@contextmanager
def _at_work(folder: Path, part: str = "") -> Iterator[None]:
    """Holds the work folder: alone, or beside those who do other parts."""
    work, busy = folder / WORK_NAME, f"{folder}: another build is at work there"
    there = folder.is_dir()
    try:
        with locked(work / "lock", busy, shared=bool(part)):
            if part:
                with locked(work / f"{part}.lock", busy):
                    yield
            else:
                yield
    finally:
        with suppress(OSError):  # something is left to do, or is not ours
            work.rmdir()
            if not there:
                folder.rmdir()


def _warn(plan: Plan, *, show: bool) -> None:
    """Says what is wrong before hours of decoding, not after."""
    if show:
        for line in plan.remarks.warnings:
            print(f"cpprune: warning: {printable_line(line)}", file=sys.stderr)


def _close(folder: Path, manifest: Manifest, said: Sequence[str], *, show: bool) -> Manifest:
    """Says what became of all files and clips."""
    if show:
        for line in closing_lines(manifest, said):
            print(line, file=sys.stderr)
        if manifest.rejected:
            print(f"bad files: see {folder / manifest.rejected['name']}", file=sys.stderr)
    return manifest


def _claim(work: Path, plan: Plan) -> None:
    """Notes the plan in the work folder, or checks that it is the one that was begun."""
    path = work / PLAN_NAME
    arguments = plan.options.arguments()
    mine: dict[str, Any] = {"plan": plan.sha256, "inputs": plan.inputs, "arguments": arguments}
    if not path.is_file():
        replace_file(path, work, canonical(mine))
        return
    theirs = read_mark(path)
    if theirs == mine:
        return
    before = theirs.get("arguments")
    then = before if isinstance(before, dict) else {}
    changed = [
        f"--{name.replace('_', '-')} was {then.get(name)!r}, is {value!r}"
        for name, value in arguments.items()
        if then.get(name) != value
    ]
    why = "; ".join(changed) or "the source's files or lists have changed since"
    raise UserError(
        f"{work.parent} holds an unfinished build with other arguments or inputs ({why}); "
        "start it with the same ones to continue, or use --overwrite to begin anew"
    )


def _shard_jobs(plan: Plan, folder: Path, spooled: Spooled | None) -> list[ShardJob]:
    source = plan.source
    return [
        ShardJob(
            name=name,
            split=split,
            clips=clips,
            classes=source.classes,
            groups=source.groups,
            out=folder,
            options=plan.options,
            one_clip=source.one_clip,
            spooled=spooled and {c.name: spooled[c.name] for c in clips if c.name in spooled},
            images=None if source.images is None else source.images[[c.start for c in clips]],
        )
        for name, split, clips in plan.shards
    ]


def _make_shards(
    plan: Plan, jobs: list[ShardJob], workers: int, *, show: bool
) -> list[dict[str, Any]]:
    """Returns the record of every shard, in their order."""
    made = records_of(jobs[0].out) if jobs else set()
    for job in jobs:
        if os.path.lexists(job.out / job.name) and job.name not in made:
            raise UserError(f"{job.out / job.name} is no shard of this build; move it away")
    records: dict[int, dict[str, Any]] = {}
    clips = sum(len(job.clips) for job in jobs)
    with progress("Writing clips", clips, show=show) as advance:
        for number, record in run_jobs(make_shard, jobs, workers):
            if "bad" in record:
                raise bad_file_error(Bad(*record["bad"]), plan.options)
            records[number] = record
            advance(len(jobs[number].clips))
    return [records[number] for number in range(len(jobs))]


def _finish(
    plan: Plan,
    folder: Path,
    records: list[dict[str, Any]],
    spool_bad: list[Bad],
    clipped: dict[str, int],
) -> Manifest:
    """Writes the index, the report of bad files and, last, the manifest."""
    work = folder / WORK_NAME
    groups = plan.source.groups
    names = ("key", "label", "recording", *groups)
    places = ("offset", "size", "crc32", "record_offset", "record_size", "record_crc32")
    filled = [record for record in records if record["rows"]]
    for record in records:
        if not record["rows"]:
            (folder / record["name"]).unlink(missing_ok=True)
    columns: dict[str, list[Any]] = {name: [] for name in (*INDEX_TYPES, *groups)}
    for number, record in enumerate(filled):
        for name, values in zip((*names, *places), zip(*record["rows"], strict=True), strict=True):
            columns[name].extend(values)
        columns["shard"].extend([number] * len(record["rows"]))
        columns["split"].extend([record["split"]] * len(record["rows"]))
    shard_bad = [Bad(*pair) for record in records for pair in record["rejected"]]
    bad = sorted({*plan.bad, *spool_bad, *shard_bad})
    if not columns["key"]:
        raise bad_file_error(bad[0], plan.options)
    index = work / f"{INDEX_NAME}.tmp"
    write_index(index, columns, groups)
    publish(index, folder / INDEX_NAME)
    for record in records:
        clipped |= record["clipped"]
    silent = {key for record in records for key in record["silent"]}
    rejected = _write_rejected(folder, bad) if bad else None
    audio = plan.source.kind == "audio"
    manifest = Manifest(
        kind=plan.source.kind,
        classes=plan.source.classes,
        sample_rate=plan.options.sample_rate if audio else None,
        shape=shape_of(plan),
        dtype="int16" if audio else "uint8",
        encoding=plan.options.encoding if audio else "npy",
        splits=_split_counts(columns, plan.source.classes),
        groups=groups,
        shards=tuple(
            Shard(
                name=record["name"],
                split=record["split"],
                count=len(record["rows"]),
                bytes=record["bytes"],
                sha256=record["sha256"],
            )
            for record in filled
        ),
        index={
            "name": INDEX_NAME,
            "sha256": sha256_of_file(folder / INDEX_NAME),
            "bytes": (folder / INDEX_NAME).stat().st_size,
            "rows": len(columns["key"]),
        },
        rejected=rejected,
        source={
            "kind": plan.options.kind,
            "arguments": plan.options.arguments(),
            "lists": dict(plan.source.lists),
            "files": len(plan.source.items),
            "ignored_files": sum(plan.source.aside.values()),
            "audit": asdict(audit(plan, bad, clipped, silent, columns, folder)),
            "plan": plan.sha256,
        },
    ).sealed()
    parse_manifest(manifest.to_bytes())
    replace_file(folder / MANIFEST_NAME, work, manifest.to_bytes())
    return manifest


def _split_counts(
    columns: dict[str, list[Any]], classes: tuple[str, ...]
) -> dict[str, SplitCounts]:
    counts = Counter(zip(columns["split"], columns["label"], strict=True))
    there = set(columns["split"])
    return {
        split: {
            "count": sum(counts[split, label] for label in range(len(classes))),
            "classes": {name: counts[split, label] for label, name in enumerate(classes)},
        }
        for split in SPLITS
        if split in there
    }


def _write_rejected(folder: Path, bad: list[Bad]) -> RejectedFile:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Bad._fields)
    writer.writerows(bad)
    data = text.getvalue().encode()
    replace_file(folder / REJECTED_NAME, folder / WORK_NAME, data)
    return {"name": REJECTED_NAME, "sha256": sha256_of(data), "count": len(bad)}
