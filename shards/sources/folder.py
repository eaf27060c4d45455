"""A folder of folders: CLASS/…/FILE or train|val|test/CLASS/…/FILE."""

import os
from pathlib import Path

from shards.errors import InputError
from shards.manifest import SPLITS
from shards.sources.source import Item, Source

# Endings in use beside the names libsndfile gives to its formats.
_MORE_ENDINGS = {"aif", "aifc", "snd", "oga", "opus", "mp3"}


def endings() -> frozenset[str]:
    """Returns the file name endings, without a dot, that count as audio."""
    import soundfile

    formats = {name.lower() for name in soundfile.available_formats()}
    # A raw file says neither its rate nor its type.
    return frozenset((formats | _MORE_ENDINGS) - {"raw"})


def read(root: Path) -> Source:
    """Lists a folder; a class is a sub-folder, a recording is a file.

    Raises:
        InputError: if the folder is missing, has no classes, or a class has no audio.
    """
    if not root.is_dir():
        raise InputError(f"{root} does not exist or is not a folder")
    known = endings()
    top = _folders(root)
    parts = {name: root / name for name in top} if top and set(top) <= set(SPLITS) else {"": root}
    if parts.keys() != {""} and "train" not in parts:
        raise InputError(f"{root} has {', '.join(parts)} but no train folder")
    classes = tuple(sorted({name for folder in parts.values() for name in _folders(folder)}))
    if not classes:
        raise InputError(f"{root} has no sub-folders; make one for each class")
    items: list[Item] = []
    ignored = sum(not path.is_dir() for path in root.iterdir())
    for split, folder in parts.items():
        ignored += sum(not path.is_dir() for path in folder.iterdir()) if split else 0
        for name in _folders(folder):
            files, others = audio_files(folder / name, known)
            ignored += others
            if not files:
                raise InputError(
                    f"the class folder {folder / name} has no audio files; fill or remove it"
                )
            for file in files:
                relative = file.relative_to(root).as_posix()
                items.append(Item(relative, str(file), classes.index(name), split, relative))
    for split in parts:
        for label, name in enumerate(classes):
            if split == "train" and not any(i.label == label and i.split == split for i in items):
                raise InputError(f"the class {name} has no folder in {root / 'train'}")
    return Source(
        kind="audio",
        classes=classes,
        groups=(),
        unit="recording",
        items=items,
        ignored=ignored,
    )


def _folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def audio_files(folder: Path, known: frozenset[str]) -> tuple[list[Path], int]:
    """Returns the files at any depth whose ending is one of `known`, and the number of the others."""
    found: list[Path] = []
    others = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or name.rpartition(".")[2].lower() not in known:
                others += 1
            else:
                found.append(Path(place) / name)
    return sorted(found), others
