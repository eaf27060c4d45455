"""Building tar shards: parallel, resumable, atomic, reproducible to the byte.

A shard is written to the hidden work folder, synced and renamed, and a record of its rows is kept
there, so that a build that was killed continues with the missing shards. `dataset.json` is written
last and marks a finished dataset. In the same way, several machines can build a part each, which a
final build joins.
"""

import csv
import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

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
from shards.build.shard_job import ShardJob, ShardRecord, make_shard
from shards.build.spool import Spooled, needs_spool, spool
from shards.build.summary import closing_lines, printable_line
from shards.build.tar import Record
from shards.errors import UserError
from shards.files.atomic import publish, replace_file, writing
from shards.files.locks import locked
from shards.files.ownership import read_mark, remove
from shards.log import LOG
from shards.manifest import (
    INDEX_NAME,
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
) -> Manifest:
    """Builds a dataset folder, or finishes one that was interrupted.

    Args:
        options: source and settings.
        out: the folder; it may be missing, empty, or hold a build with the same options.
        workers: number of processes; None for one per CPU. The bytes do not depend on it.
        overwrite: whether to delete another dataset in `out`; only files that its manifest lists.

    Returns:
        The manifest of the finished dataset.

    Raises:
        UserError: the source is unusable, `out` holds something else, the disk is too small, or a
            file is bad and `on_error` is "stop".
    """
    folder, workers, plan = _planned(options, out, workers)
    work = folder / WORK_NAME
    if (folder / MANIFEST_NAME).exists() and not overwrite and not work.exists():
        return _close(folder, _finished(folder, plan), ())
    with _at_work(folder), writing(folder, "--out"):
        claim_dataset(folder)  # another build may have written to it in the meantime
        _refuse_small_disk(folder, plan)
        if overwrite or is_half_deleted(folder):
            delete_dataset(folder)
        elif (folder / MANIFEST_NAME).exists():
            manifest = _finished(folder, plan)
            remove(work, WORK_FILES)
            return _close(folder, manifest, ())
        _claim(work, plan)
        _warn(plan)
        spooled, bad, clipped = spool(plan, work, workers) if needs_spool(plan) else (None, [], {})
        records = _make_shards(plan, _shard_jobs(plan, folder, spooled), workers)
        manifest = _finish(plan, folder, records, bad, clipped)
        remove(work, WORK_FILES)
    return _close(folder, manifest, plan.remarks.warnings)


def build_part(
    options: BuildOptions,
    out: str | Path,
    number: int,
    of: int,
    *,
    workers: int | None = None,
) -> bool:
    """Builds one of several parts of a dataset, which may run at the same time on several machines.

    A part is every `of`-th shard or, for recordings longer than a clip, every `of`-th file of decoded
    samples. `build_dataset` joins the parts, and builds what they have not finished.

    Args:
        options: source and settings; the same for all parts.
        out: the folder, on a disk that all machines share.
        number: number of the part, from 1.
        of: number of parts.
        workers: number of processes; None for one per CPU.

    Returns:
        Whether the dataset is already finished.

    Raises:
        UserError: see `build_dataset`; also if there is no such part, or another process builds it.
    """
    if not 1 <= number <= of:
        raise UserError(f"--part {number} --of {of}: use --part 1 to --part {of}")
    folder, workers, plan = _planned(options, out, workers)
    work = folder / WORK_NAME
    if (folder / MANIFEST_NAME).exists():
        _finished(folder, plan)
        return True
    share = slice(number - 1, None, of)
    with _at_work(folder, part=f"part-{number}-of-{of}"), writing(folder, "--out"):
        claim_dataset(folder)
        if (folder / MANIFEST_NAME).exists():
            _finished(folder, plan)
            return True
        _refuse_small_disk(folder, plan)
        _claim(work, plan)
        _warn(plan)
        if needs_spool(plan):
            spool(plan, work, workers, share=share)
        else:
            _make_shards(plan, _shard_jobs(plan, folder, None)[share], workers)
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


def _planned(options: BuildOptions, out: str | Path, workers: int | None) -> tuple[Path, int, Plan]:
    """Returns the output folder, which has been checked, the number of workers, and the plan."""
    folder = Path(out).absolute()
    workers = cpu_count() if workers is None else workers
    claim_dataset(folder)
    # The next build would take the output folder for a class.
    source = Path(options.source).resolve()
    if options.source_kind.walks_folder and source in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"--out {folder}: lies in --source {options.source}; name a place outside")
    return folder, workers, make_plan(options, workers)


def _refuse_small_disk(folder: Path, plan: Plan) -> None:
    free = shutil.disk_usage(folder).free
    made = [path for name in ("*.tar", f"{WORK_NAME}/spool-*.pcm") for path in folder.glob(name)]
    have = sum(path.stat().st_size for path in made)
    # FLAC usually halves the size, but cannot compress noise.
    needed = 2 * plan.bytes if needs_spool(plan) else plan.bytes
    if needed - have > free:
        raise UserError(
            f"--out {folder}: the build takes {needed / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free on that disk; name another place"
        )


@contextmanager
def _at_work(folder: Path, part: str = "") -> Iterator[None]:
    """Locks the work folder: exclusively, or for one part beside builds of other parts."""
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
        with suppress(OSError):  # not empty: the build is unfinished, or files are not ours
            work.rmdir()
            if not there:
                folder.rmdir()


def _warn(plan: Plan) -> None:
    """Logs the plan's warnings, before hours of decoding rather than after."""
    for line in plan.remarks.warnings:
        LOG.warning(printable_line(line))


def _close(folder: Path, manifest: Manifest, said: Sequence[str]) -> Manifest:
    """Logs the audit of a build."""
    for line in closing_lines(manifest, said):
        LOG.info(line)
    if manifest.rejected:
        LOG.info(f"bad files: see {folder / manifest.rejected['name']}")
    return manifest


def _claim(work: Path, plan: Plan) -> None:
    """Writes the plan to the work folder, or checks that the unfinished build there has the same."""
    path = work / PLAN_NAME
    arguments = plan.options.arguments()
    mine = {"plan": plan.sha256, "inputs": plan.inputs, "arguments": arguments}
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


def _make_shards(plan: Plan, jobs: list[ShardJob], workers: int) -> list[ShardRecord]:
    """Makes all shards; returns their records in order."""
    made = records_of(jobs[0].out) if jobs else set()
    for job in jobs:
        if os.path.lexists(job.out / job.name) and job.name not in made:
            raise UserError(f"{job.out / job.name} is no shard of this build; move it away")
    records: dict[int, ShardRecord] = {}
    clips = sum(len(job.clips) for job in jobs)
    with progress("Writing clips", clips) as advance:
        for number, record in run_jobs(make_shard, jobs, workers):
            if isinstance(record, Bad):
                raise bad_file_error(record, plan.options)
            records[number] = record
            advance(len(jobs[number].clips))
    return [records[number] for number in range(len(jobs))]


def _finish(
    plan: Plan,
    folder: Path,
    records: Sequence[ShardRecord],
    spool_bad: Sequence[Bad],
    clipped: dict[str, int],
) -> Manifest:
    """Writes the index, the report of bad files and, last, the manifest."""
    work = folder / WORK_NAME
    groups = plan.source.groups
    filled = [record for record in records if record.rows]
    for record in records:
        clipped |= record.clipped
        if not record.rows:
            (folder / record.name).unlink(missing_ok=True)
    shard_bad = [bad for record in records for bad in record.rejected]
    bad = sorted({*plan.bad, *spool_bad, *shard_bad})
    if not filled:
        raise bad_file_error(bad[0], plan.options)
    index = work / f"{INDEX_NAME}.tmp"
    write_index(index, _index_columns(filled, groups), groups)
    publish(index, folder / INDEX_NAME)
    rejected = _write_rejected(folder, bad) if bad else None
    audio = plan.source.kind == "audio"
    manifest = Manifest(
        kind=plan.source.kind,
        classes=plan.source.classes,
        sample_rate=plan.options.sample_rate if audio else None,
        shape=shape_of(plan),
        dtype="int16" if audio else "uint8",
        encoding=plan.options.encoding if audio else "npy",
        splits=_split_counts(filled, plan.source.classes),
        groups=groups,
        shards=tuple(
            Shard(
                name=record.name,
                split=record.split,
                count=len(record.rows),
                bytes=record.bytes,
                sha256=record.sha256,
            )
            for record in filled
        ),
        index={
            "name": INDEX_NAME,
            "sha256": sha256_of_file(folder / INDEX_NAME),
            "bytes": (folder / INDEX_NAME).stat().st_size,
            "rows": sum(len(record.rows) for record in filled),
        },
        rejected=rejected,
        source={
            "kind": plan.options.kind,
            "arguments": plan.options.arguments(),
            "lists": dict(plan.source.lists),
            "files": len(plan.source.items),
            "ignored_files": sum(plan.source.aside.values()),
            "audit": asdict(audit(plan, bad, clipped, records, folder)),
            "plan": plan.sha256,
        },
    ).sealed()
    parse_manifest(manifest.to_bytes())
    replace_file(folder / MANIFEST_NAME, work, manifest.to_bytes())
    return manifest


def _index_columns(
    records: Sequence[ShardRecord], groups: Sequence[str]
) -> Mapping[str, Sequence[object]]:
    rows = [
        (record.split, shard, *row[:3], *row.groups, *row.place)
        for shard, record in enumerate(records)
        for row in record.rows
    ]
    names = ("split", "shard", "key", "label", "recording", *groups, *Record._fields)
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _split_counts(records: Sequence[ShardRecord], classes: Sequence[str]) -> dict[str, SplitCounts]:
    counts = Counter((record.split, row.label) for record in records for row in record.rows)
    there = {record.split for record in records}
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
