"""A folder of teachers' logits of augmented clips, a file an epoch, for runs that see the same clips."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.distill.logits_file import read_arrays
from cpprune.distributed import collectives
from cpprune.settings.renamed import current
from shards.errors import UserError
from shards.files.atomic import replace_file
from shards.files.documents import read_bytes, read_json, to_json
from shards.files.ownership import Kind, claim, read_mark
from shards.manifest import sha256_of

KEY = "distill.cache"
FORMAT = 1
MARK = "logits.json"
DEFAULT = "the default"
# Beginnings of the settings that the logits depend on.
SETTINGS = (
    "seed",
    "data.train_fraction",
    "data.only",
    "train.batch_size",
    "train.drop_last",
    "augment.",
    "features.backend",
    "distill.teachers",
    "distill.weights",
    "distill.average",
)


def _is_cache(folder: Path) -> bool:
    return {"format", "made_with"} <= read_mark(folder / MARK).keys()


CACHE = Kind(name="a folder of teachers' logits", parts=(MARK,), made=_is_cache)


@dataclass(frozen=True)
class Mark:
    """logits.json: what all logits in the folder depend on, by key, where it is not the default."""

    format: int
    made_with: dict[str, object]


@dataclass
class LogitsCache:
    """Logits of the augmented clips of every epoch; only rank 0 reads and writes them.

    An epoch's logits are kept when all of it was trained in one piece. Files are written whole or not at
    all. One that is damaged is passed over and written anew.

    Args:
        folder: where they lie; created with the first file.
        made_with: what they depend on, by key, where it is not the default; see
            `cpprune.runs.identity.seen_by_teachers`.
        shape: of an epoch's logits: clips, classes.
        device: of this rank.
        say: reports what is done.

    Raises:
        UserError: the folder holds something else, or logits that other settings gave.
    """

    folder: Path
    made_with: Mapping[str, object]
    shape: tuple[int, int]
    device: torch.device
    say: Callable[[str], None]
    _kept: NDArray[np.float32] | None = field(default=None, init=False)
    _seen: list[tuple[Tensor, int]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        collectives.run_on_rank_0(self._check, self.device)

    def there(self, epochs: int) -> str:
        """Return what the folder holds of a run of this many epochs, and what is to come."""
        there = sum(self._file(epoch).is_file() for epoch in range(epochs))
        size = 4 * self.shape[0] * self.shape[1]
        return (
            f"{KEY}={self.folder}: holds the teachers' logits of {there} of {epochs} epochs; the other "
            f"{epochs - there} take {(epochs - there) * size:,} bytes"
        )

    def begin(self, epoch: int, first: int) -> None:
        """Read the logits of an epoch; where there are none, take note of those that `keep` is given.

        A collective operation.

        Args:
            epoch: from 0.
            first: global batch that comes next.

        Raises:
            UserError: the file is not this folder's and epoch's.
        """
        found: list[NDArray[np.float32]] = []
        collectives.run_on_rank_0(lambda: found.extend(self._read(epoch)), self.device)
        self._kept = self._seen = None
        if collectives.broadcast_json(bool(found), self.device):
            logits = torch.from_numpy(found[0]) if found else torch.empty(self.shape)
            self._kept = collectives.broadcast(logits.to(self.device)).cpu().numpy()
        elif first == 0:
            self._seen = []
        else:
            self.say(f"{KEY}: epoch {epoch + 1} was begun without it, so its logits are not kept")

    def rows(self, places: slice) -> Tensor | None:
        """Return the logits of these clips of the epoch, in its order; None if there are none."""
        return None if self._kept is None else torch.from_numpy(self._kept[places])

    def keep(self, seen_bK: Tensor, total: int) -> None:
        """Take note of the logits of this rank's clips of the batch that comes next.

        Args:
            seen_bK: logits.
            total: clips in the global batch.
        """
        if self._seen is not None:
            self._seen.append((seen_bK, total))

    def end(self, epoch: int) -> None:
        """Write the logits of an epoch that has been trained, if they are new. A collective operation.

        Raises:
            UserError: they cannot be written.
        """
        if self._seen is None:
            return
        parts = [collectives.all_gather_rows(own, total) for own, total in self._seen]
        logits = torch.cat(parts).cpu().numpy()
        self._seen = None
        collectives.run_on_rank_0(lambda: self._write(epoch, logits), self.device)

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.npz"

    def _stamp(self, epoch: int) -> str:
        """Return what tells a file from that of another epoch, or of another folder."""
        return sha256_of(read_bytes(self.folder / MARK) + f"epoch {epoch}".encode())

    def _check(self) -> None:
        claim(self.folder, CACHE, KEY)
        mark = self.folder / MARK
        if not mark.exists():
            return
        made = read_json(mark, Mark, remedy=f"choose another folder for {KEY}")
        if made.format != FORMAT:
            raise UserError(f"{mark}: of format {made.format}, which this version does not know")
        then, now = current(made.made_with), self.made_with
        differing = [
            f"{key}: {then.get(key, DEFAULT)} there, {now.get(key, DEFAULT)} now"
            for key in sorted(then.keys() | now.keys())
            if then.get(key, DEFAULT) != now.get(key, DEFAULT)
        ]
        if differing:
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UserError(
                f"{KEY}={self.folder}: holds logits that other settings gave "
                f"({'; '.join(differing[:3])}{more}); choose another folder"
            )

    def _read(self, epoch: int) -> list[NDArray[np.float32]]:
        file = self._file(epoch)
        if not file.exists():
            return []
        try:
            arrays = read_arrays(file, ("logits", "stamp"), "the epoch's logits are computed anew")
        except UserError as error:
            self.say(str(error))
            return []
        logits, stamp = arrays.get("logits"), arrays.get("stamp")
        if logits is None or logits.shape != self.shape or str(stamp) != self._stamp(epoch):
            raise UserError(
                f"{file}: is of another epoch or folder; remove it, or choose another folder for {KEY}"
            )
        return [logits.astype(np.float32)]

    def _write(self, epoch: int, logits: NDArray[np.float32]) -> None:
        self._check()  # another run may have begun the folder meanwhile
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MARK).exists():
            mark = {"format": FORMAT, "made_with": dict(self.made_with)}
            data = f"{to_json(mark, indent=2)}\n".encode()
            replace_file(self.folder / MARK, self.folder, data)
        content = io.BytesIO()
        np.savez(content, logits=logits, stamp=np.array(self._stamp(epoch)))
        replace_file(self._file(epoch), self.folder, content.getvalue())
