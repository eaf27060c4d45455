"""Global batches of training clips: data order → reader → tensors of this rank.

`shards.order` alone decides which clips a global batch holds; this module reads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from cpprune.data.config import DataConfig
from cpprune.data.memory import (
    InMemoryClips,
    load_into_memory,
    torch_dtype,
)
from cpprune.data.prefetch import Fetch, Positions, Prefetcher
from shards.errors import UserError
from shards.files.atomic import writing
from shards.order import batch_ids, epoch_order, num_batches, permutation, rank_slice

if TYPE_CHECKING:
    from shards.reader import Dataset
    from shards.split import Split


@dataclass(frozen=True)
class Batch:
    """A global batch, of which this rank holds the clips `start` to `stop`.

    Attributes:
        number: position in the epoch, from 0.
        ids: rows of the index of the whole global batch, [B].
        start: first clip of this rank.
        stop: one past its last.
        clips: clips of this rank, [stop − start, …], int16 waveforms or uint8 images; on the GPU if they
            were prefetched.
    """

    number: int
    ids: Positions
    start: int
    stop: int
    clips: Tensor


def selected_split(dataset: Dataset, name: str, only: str | None) -> Split:
    """Return the clips of a split that `data.only` selects.

    Args:
        dataset: an open dataset.
        name: "train" or "val".
        only: a column and a value, such as device=a; None for all clips.

    Raises:
        UserError: there is no such column, or no clip with this value.
    """
    split = dataset.split(name)
    if only is None:
        return split
    column, _, value = only.partition("=")
    selected = split.where(column, value)
    if not len(selected):
        known = sorted(set(split.column(column)))
        raise UserError(
            f"data.only={only}: no clip of the split {name} has it; {column} is one of "
            f"{', '.join(known[:20])}{' …' if len(known) > 20 else ''}"
        )
    return selected


def training_positions(split: Split, fraction: float) -> Positions:
    """Return the positions within the training split that are trained on.

    Whole recordings are taken, in an order that does not depend on the fraction, until they hold this
    fraction of the clips.
    """
    if fraction == 1:
        return np.arange(len(split), dtype=np.int64)
    recordings, which = np.unique(split.column("recording"), return_inverse=True)
    place = np.empty(len(recordings), np.int64)
    place[permutation(len(recordings), len(recordings))] = np.arange(len(recordings))
    clips_before = np.cumsum(np.bincount(place[which])) - np.bincount(place[which])
    return np.flatnonzero(clips_before[place[which]] < fraction * len(split))


def training_split(dataset: Dataset, config: DataConfig) -> Split:
    """Return the clips that are trained on: those that `data.train_fraction` and `data.only` select.

    Raises:
        UserError: see `selected_split`; or no clip is left.
    """
    split = dataset.split("train")
    split = split.take(training_positions(split, config.train_fraction))
    if config.only is None:
        return split
    selected = selected_split(dataset, "train", config.only)
    split = split.take(np.flatnonzero(np.isin(split.ids, selected.ids)))
    if not len(split):
        raise UserError(
            f"data.only={config.only} with data.train_fraction={config.train_fraction}: no training "
            "clip is left"
        )
    return split


class TrainingLoader:
    """Iterates over the training split in global batches, epoch by epoch.

    Nothing is read before the first epoch begins.

    Args:
        dataset: an open dataset.
        config: see `DataConfig`.
        batch_size: global batch size B.
        seed: seed of the data order.
        rank: rank of this process.
        world: number of processes.
        device: device that this rank trains on.
        drop_last: whether the last batch of an epoch is left out if it is smaller.
        ids_file: file to which the ids of this rank's batches are appended, or None.
        alive: called now and then while clips are loaded into memory.

    Raises:
        UserError: no batch is left, or not a clip of each for every process.
    """

    # More parameters than is usual: each is a fact of its own, and tests set most of them.
    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        batch_size: int,
        seed: int,
        *,
        rank: int,
        world: int,
        device: torch.device,
        drop_last: bool = False,
        ids_file: Path | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        if batch_size < world:
            raise UserError(
                f"train.batch_size={batch_size}: must be at least the number of processes, {world}"
            )
        self.dataset, self.config = dataset, config
        self.rows = training_split(dataset, config).ids
        self.val = selected_split(dataset, "val", config.only)
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world, self.device = rank, world, device
        self.ids_file, self.alive = ids_file, alive
        whole = len(self.rows) - len(self.rows) % batch_size
        # Number of clips in an epoch.
        self.clips = whole if drop_last else len(self.rows)
        if drop_last and not self.clips:
            raise UserError(
                f"train.drop_last=true leaves nothing to train on: the training split has "
                f"{len(self.rows)} clips, fewer than train.batch_size={batch_size}"
            )

    def __len__(self) -> int:
        return num_batches(self.clips, self.batch_size)

    @cached_property
    def in_memory(self) -> InMemoryClips | None:
        """The training clips in memory, or None if they are not kept there.

        The first access loads them and is a collective operation.
        """
        return self._load(self.rows)

    @cached_property
    def validation_in_memory(self) -> InMemoryClips | None:
        """The validation clips, kept as the training clips are; see `in_memory`."""
        return self._load(self.val.ids)

    def _load(self, rows: Positions) -> InMemoryClips | None:
        return load_into_memory(self.dataset, rows, self.config.in_memory, self.device, self.alive)

    def training(self) -> Fetch:
        """Return a function that fetches training clips by their position in `rows`, unshuffled.

        A collective operation when it is called first.

        Raises:
            UserError: clips cannot be read, or there is no room for them where they should be kept.
        """
        if self.in_memory is None:
            self.dataset.prefetch(self.rows)
        return self._fetch

    def validation(self) -> Fetch:
        """Return a function that fetches validation clips by their position in the split.

        A collective operation when it is called first.

        Raises:
            UserError: clips cannot be read, or there is no room for them where they should be kept.
        """
        if self.validation_in_memory is not None:
            return self.validation_in_memory.fetch
        return lambda positions: torch.from_numpy(self.val.fetch(positions))

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the global batches of an epoch from number `first` on. A collective operation.

        Shards of a remote dataset are downloaded ahead: the epoch's, then the validation split's.

        Raises:
            UserError: clips cannot be read, or there is no room for them where they should be kept.
        """
        order = epoch_order(len(self.rows), self.seed, epoch)
        # Both are loaded before anything is trained: what does not fit is refused at once.
        unread = [] if self.in_memory else [self.rows[order[first * self.batch_size : self.clips]]]
        unread += [] if self.validation_in_memory else [self.val.ids]
        self.dataset.prefetch(np.concatenate([self.rows[:0], *unread]))
        batches = []
        for number in range(first, len(self)):
            positions = batch_ids(order, number, self.batch_size)
            own = rank_slice(np.arange(len(positions)), self.rank, self.world)
            start = int(own[0]) if len(own) else 0
            batches.append((number, positions, start, start + len(own)))
        own_positions = [positions[start:stop] for _, positions, start, stop in batches]
        clips_of_batches = self._read_batches(own_positions)
        for (number, positions, start, stop), clips in zip(batches, clips_of_batches, strict=True):
            batch = Batch(number, self.rows[positions], start, stop, clips)
            self._record(epoch, batch)
            yield batch

    def _read_batches(self, batches: list[Positions]) -> Iterator[Tensor]:
        if self.config.workers and self.in_memory is None:
            sampler, loader = self._workers
            sampler.batches = [self.rows[positions] for positions in batches]
            for clips in loader:
                if isinstance(clips, Exception):
                    raise clips
                yield clips
        elif self.device.type == "cuda":
            yield from self._prefetcher.batches(batches)
        else:
            yield from map(self._fetch, batches)

    def _fetch(self, positions: Positions, out: Tensor | None = None) -> Tensor:
        if self.in_memory is not None:
            return self.in_memory.fetch(positions, out)
        rows = self.rows[positions]
        return torch.from_numpy(self.dataset.fetch(rows, None if out is None else out.numpy()))

    @cached_property
    def _prefetcher(self) -> Prefetcher:
        most = -(-self.batch_size // self.world)
        if self.in_memory is not None and self.in_memory.clips.is_cuda:
            gather = self.in_memory.gather
            return Prefetcher(self.device, (), torch.int64, most, _copy_positions, gather)
        dtype, shape = torch_dtype(self.dataset), self.dataset.shape
        return Prefetcher(self.device, shape, dtype, most, self._fetch)

    @cached_property
    def _workers(self) -> tuple[_PlannedBatches, DataLoader[Tensor | Exception]]:
        sampler = _PlannedBatches()
        loader = DataLoader(
            _BatchReader(self.dataset),
            sampler=sampler,
            batch_size=None,
            num_workers=self.config.workers,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="forkserver",
        )
        return sampler, loader

    def _record(self, epoch: int, batch: Batch) -> None:
        if self.ids_file is None:
            return
        line = {"epoch": epoch, "batch": batch.number, "start": batch.start}
        line["ids"] = batch.ids[batch.start : batch.stop].tolist()
        with writing(self.ids_file):
            self.ids_file.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with os.fdopen(os.open(self.ids_file, flags, 0o666), "a") as file:
                file.write(json.dumps(line) + "\n")


def _copy_positions(positions: Positions, out: Tensor) -> None:
    out.copy_(torch.from_numpy(positions))


class _BatchReader(TorchDataset[Tensor | Exception]):
    """Dataset whose items are whole batches, read by a worker process."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, ids: Positions) -> Tensor | Exception:
        try:
            return torch.from_numpy(self.dataset.fetch(ids))
        except (UserError, OSError) as error:
            return error  # if it were raised, DataLoader would put the worker's traceback into its text


class _PlannedBatches(Sampler[Positions]):
    """Sampler that yields the batches of an epoch, which are set before it is iterated over."""

    def __init__(self) -> None:
        self.batches: list[Positions] = []

    def __iter__(self) -> Iterator[Positions]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
