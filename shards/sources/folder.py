"""A folder of folders: CLASS/…/FILE or SPLIT/CLASS/…/FILE."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from shards.errors import UserError
from shards.sources.names import printable
from shards.sources.registry import source
from shards.sources.source import Item, Source
from shards.sources.split_names import is_split_name, meaning, split_names
from shards.sources.walk import (
    FOLLOWED,
    NO_SPLIT,
    Found,
    beside,
    endings,
    folders,
    walk,
)

if TYPE_CHECKING:
    from shards.build.options import BuildOptions

__all__ = ["endings", "read"]

# The path of a piece of a recording; its first group is that of the recording.
PIECES = r"(.+)[-_. ]\d+\.\w+$"


def _check(options: "BuildOptions") -> None:
    pattern = options.keep_together
    try:
        re.compile(pattern or "")
        (pattern or "").encode()
    except (re.error, RecursionError, OverflowError, UnicodeEncodeError) as error:
        raise UserError(f"--keep-together {pattern!r} is no regular expression: {error}") from error


@source(
    "folder",
    help="CLASS/FILE or SPLIT/CLASS/FILE",
    options=("layout", "keep_together"),
    check=_check,
    walks_folder=True,
)
def _from_options(options: "BuildOptions") -> Source:
    return read(options.source, options.layout, options.keep_together)


def read(root: Path, layout: str = "auto", together: str | None = None) -> Source:
    """Lists a folder; a class is a sub-folder, a recording is a file.

    Args:
        root: the folder.
        layout: "classes": the sub-folders are classes, whatever they are called; "splits": those that
            are called as splits are, with the classes in them, and others are left aside; "auto": as
            the names say, where there is one way to read them.
        together: a regular expression over a file's path below `root`; files for which its first
            group, or else its match, is the same never part.

    Raises:
        UserError: if the folder is missing, has no classes, or can be read in several ways.
    """
    if not root.is_dir():
        raise UserError(f"{root} does not exist or is not a folder")
    known = endings()
    all_found = beside(root, known)
    splits = {} if layout == "classes" else _splits(root, layout, known, all_found)
    parts = {split: root / name for name, split in splits.items()} or {"": root}
    if splits and "train" not in parts:
        raise UserError(f"{root} has {', '.join(sorted(splits))} but no train folder")
    names = {split: folders(folder) for split, folder in parts.items()}
    classes = tuple(sorted({name for of_split in names.values() for name in of_split}))
    if not classes:
        raise UserError(_no_classes(root, known, list(parts.values()), layout))
    items: list[Item] = []
    empty: dict[str, str] = {}
    for split, folder in parts.items():
        if split:
            all_found.add(beside(folder, known))
        for name in names[split]:
            found = walk(folder / name, known)
            all_found.add(found)
            all_found.folders[FOLLOWED] += (folder / name).is_symlink()
            if not found.files:
                empty[printable(str(folder / name))] = _listed(found.aside)
            for file in found.files:
                relative = printable(file.relative_to(root).as_posix())
                items.append(
                    Item(relative, str(file), classes.index(name), split, relative, (), "")
                )
    if splits:
        for name in classes:
            if name not in names["train"]:
                raise UserError(f"the class {printable(name)} has no folder in {parts['train']}")
    return Source(
        kind="audio",
        classes=tuple(printable(name) for name in classes),
        groups=(),
        unit="file" if together is None else "match of --keep-together",
        items=items if together is None else _together(items, together),
        aside=all_found.aside,
        folders=all_found.folders + Counter({"empty classes": len(empty)}),
        empty=empty,
        notes=meaning("folders", splits),
        split_warnings=_splits_below(items),
        together_hint=f"--keep-together {quote(PIECES)}",
    )


def _splits(root: Path, layout: str, known: frozenset[str], all_found: Found) -> dict[str, str]:
    """Returns the sub-folders that are splits, with their splits; none if they are classes."""
    names = folders(root)
    splits = dict(split_names(names, f"--source {root}"))
    if layout == "splits" and not splits:
        raise UserError(f"--layout splits: {root} has no folder called train, val or test")
    if not splits:
        return {}
    for name in names:
        if name in splits:
            continue
        found = walk(root / name, known)
        if found.files and layout == "auto":
            given = ", ".join(sorted(splits))
            raise UserError(
                f"{root} has {given}, which may be splits, beside {printable(name)} with audio, which "
                "is none: move it away, or use --layout splits (to leave it aside) or --layout classes"
            )
        all_found.add(found)
        if found.files:
            all_found.aside[NO_SPLIT] += len(found.files)
    return splits


def _splits_below(items: Sequence[Item]) -> tuple[str, ...]:
    """Returns a warning if there are splits below the classes, where they are not looked for."""
    below = {name[1] for name in (item.name.split("/") for item in items) if len(name) > 2}
    called = sorted(name for name in below if is_split_name(name))
    if len(called) < 2:
        return ()
    return (
        f"the classes have folders called {', '.join(called)}, which are not used as splits: "
        "put them above the classes, as in train/CLASS/FILE",
    )


def _together(items: list[Item], pattern: str) -> list[Item]:
    """Returns the items with what the pattern finds in their names as their unit."""
    expression = re.compile(pattern)
    matches = [expression.search(item.name) for item in items]
    found = [match[1 if expression.groups else 0] if match else "" for match in matches]
    if items and not any(found):
        raise UserError(
            f"--keep-together {pattern!r} finds nothing in any path, as {items[0].name}"
        )
    return [item._replace(together=of or "") for item, of in zip(items, found, strict=True)]


def _no_classes(root: Path, known: frozenset[str], parts: list[Path], layout: str) -> str:
    if parts == [root]:
        return f"{root} has no sub-folders; make one for each class"
    loose = [part for part in parts if walk(part, known).files]
    if loose and layout == "auto":
        return (
            f"{root}: {loose[0].name} has audio but no sub-folders: make one for each class in it, or, "
            "if it is a class itself, say --layout classes"
        )
    return f"{root}: {', '.join(part.name for part in parts)} have no sub-folders; make one a class"


def _listed(aside: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(aside.items()))
