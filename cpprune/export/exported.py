"""Exported models on disk: what each is, how large, and what --check has measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpprune.export.check import Check
from cpprune.export.target import CHECK, ExportedFile, Target, targets
from shards.errors import UserError
from shards.files.documents import read_json, typed

REMEDY = "export the model folder again with cpprune export"


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """An exported model.

    Attributes:
        path: of the file or folder.
        target: of `cpprune export --to`.
        precision: of the weights.
        weights_sha256: of the model folder's weights.
        bytes: what it takes, by what; see `storage`.
        model: to be run here on one thread; None of a folder.
        check: what was measured when it was exported; None if that was not asked for, and of a file.
    """

    path: Path
    target: str
    precision: str
    weights_sha256: str
    bytes: Mapping[str, int]
    model: ExportedFile | None
    check: Check | None


@dataclass(frozen=True)
class _Compiled:
    flash: int


@dataclass(frozen=True)
class _Folder:
    """`metadata.json` of an exported folder."""

    target: str
    precision: str
    weights_sha256: str
    bytes: dict[str, int]
    compiled: _Compiled | None = None


@dataclass(frozen=True)
class _File:
    """What an exported file says of itself."""

    precision: str
    weights_sha256: str


def storage(size: Mapping[str, int]) -> int:
    """Return the bytes that an exported model takes where it is stored, from its `bytes`.

    Those of the file, or of flash; without a compiler that measured flash, of the constants.
    """
    if "file" in size:
        return size["file"]
    return size.get("flash", size["network"] + size["front_end"])


def is_exported(path: Path) -> bool:
    """Return whether a path looks like an exported model, by its name or its metadata."""
    return _target_of(path) is not None


def read_exported(path: Path) -> OnDisk:
    """Read an exported model. Code in a folder is neither compiled nor run.

    Raises:
        UserError: it is not one, or damaged, or packages to run it are missing.
    """
    target = _target_of(path)
    if target is None:
        missing = "" if path.exists() else "there is no such file: "
        suffixes = ", ".join(t.suffix for t in targets().values() if t.load)
        raise UserError(
            f"{path}: {missing}name what cpprune export wrote: a file ({suffixes}) or a folder"
        )
    if target.load is None:
        return _read_folder(path)
    target.require(str(path))
    model = target.load(path, threads=1)
    about = typed(model.about(), _File)
    return OnDisk(
        path=path,
        target=target.name,
        precision=about.precision,
        weights_sha256=about.weights_sha256,
        bytes=model.complexity()["bytes"],
        model=model,
        check=None,
    )


def _read_folder(path: Path) -> OnDisk:
    about = read_json(path / "metadata.json", _Folder, remedy=REMEDY)
    size = dict(about.bytes)
    if about.compiled:
        size["flash"] = about.compiled.flash
    if "flash" not in size and not {"network", "front_end"} <= size.keys():
        raise UserError(f"{path / 'metadata.json'}: does not say how large it is; {REMEDY}")
    measured = path / CHECK
    return OnDisk(
        path=path,
        target=about.target,
        precision=about.precision,
        weights_sha256=about.weights_sha256,
        bytes=size,
        model=None,
        check=read_json(measured, Check, remedy=REMEDY) if measured.is_file() else None,
    )


def _target_of(path: Path) -> Target | None:
    folder = path.is_dir()
    for target in targets().values():
        if folder and target.folder is not None and target.folder.made(path):
            return target
        if not folder and path.is_file() and target.load and path.suffix == target.suffix:
            return target
    return None
