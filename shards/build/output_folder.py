"""Output folder of a build: what marks it as a dataset, and deleting it for another one.

`dataset.json` marks a finished dataset and lists its files; `.build/plan.json` marks an unfinished
build, with a record of each finished shard beside it.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from shards.errors import UserError
from shards.files.ownership import Kind, claim, read_mark, remove
from shards.manifest import INDEX_NAME, MANIFEST_NAME, REJECTED_NAME, WORK_NAME

PLAN_NAME = "plan.json"
# The manifest of a dataset that is being deleted, kept to the end because it lists the files.
REPLACED_NAME = "replaced.json"
# All files that a build writes to its work folder, except its lock.
WORK_FILES = (
    *(PLAN_NAME, REPLACED_NAME, "*.tar.json", "spool-*.pcm", "spool-*.pcm.json"),
    *("part-*-of-*.lock", "*.tmp"),
)
_SHARD = re.compile(r"(train|val|test)-\d{6,}\.tar")


def _is_dataset(folder: Path) -> bool:
    work = folder / WORK_NAME
    return any(map(_is_manifest, _manifests(folder))) or _is_plan(read_mark(work / PLAN_NAME))


def _manifests(folder: Path) -> Iterator[dict[str, object]]:
    yield read_mark(folder / MANIFEST_NAME)
    yield read_mark(folder / WORK_NAME / REPLACED_NAME)


def _is_manifest(found: dict[str, object]) -> bool:
    return str(found.get("format")).startswith("cpprune-shards/") and "shards" in found


def _is_plan(found: dict[str, object]) -> bool:
    named = found.keys() == {"plan", "inputs", "arguments"}
    return named and isinstance(found["arguments"], dict)


DATASET = Kind(
    name="a dataset",
    parts=(MANIFEST_NAME, INDEX_NAME, REJECTED_NAME, f"{WORK_NAME}/"),
    made=_is_dataset,
    # Another process of the same build may have just started; `claim_dataset` checks the contents.
    early=frozenset({WORK_NAME}),
)


def claim_dataset(folder: Path) -> None:
    """Checks that a build may write to the folder; changes nothing.

    Raises:
        UserError: it holds anything but a dataset, or a work folder that no build made.
    """
    claim(folder, DATASET, "--out")
    work = folder / WORK_NAME
    if not work.is_dir() or _is_plan(read_mark(work / PLAN_NAME)):
        return
    known = ("lock", *(name for name in WORK_FILES if name != PLAN_NAME))
    try:
        names = sorted(path.name for path in work.iterdir())
    except FileNotFoundError:  # another build has just ended
        return
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in known):
            raise UserError(
                f"--out {folder}: no build made {WORK_NAME} in it (it has {name}); move it away or "
                "name another folder"
            )


def records_of(folder: Path) -> set[str]:
    """Returns the names of the finished shards of an unfinished build."""
    return {path.name.removesuffix(".json") for path in (folder / WORK_NAME).glob("*.tar.json")}


def is_half_deleted(folder: Path) -> bool:
    """Returns whether `delete_dataset` was interrupted in this folder."""
    return _is_manifest(read_mark(folder / WORK_NAME / REPLACED_NAME))


def delete_dataset(folder: Path) -> None:
    """Deletes the files that the manifest lists or an unfinished build has written, and no others.

    The caller has claimed the folder and holds its lock.

    Raises:
        UserError: the folder has a file that is not listed; nothing is deleted then.
    """
    listed = records_of(folder) | {MANIFEST_NAME, WORK_NAME}
    work = folder / WORK_NAME
    if _is_plan(read_mark(work / PLAN_NAME)):
        listed |= {INDEX_NAME, REJECTED_NAME}
    for manifest in filter(_is_manifest, _manifests(folder)):
        listed |= {INDEX_NAME} | ({REJECTED_NAME} if manifest.get("rejected") else set())
        shards = manifest["shards"]
        entries = shards if isinstance(shards, list) else []
        names = {str(entry.get("name")) for entry in entries if isinstance(entry, dict)}
        listed |= {name for name in names if _SHARD.fullmatch(name)}
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name not in listed:
            raise UserError(f"--overwrite: {path} is not part of a dataset; move it away")
    if (folder / MANIFEST_NAME).exists():
        (folder / MANIFEST_NAME).rename(work / REPLACED_NAME)
    remove(folder, sorted(listed - {MANIFEST_NAME, WORK_NAME}))
    remove(work, [name for name in WORK_FILES if name != REPLACED_NAME])
    remove(work, [REPLACED_NAME])
