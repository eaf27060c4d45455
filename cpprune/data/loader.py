"""Batches for this rank: order → reader → tensors.

Which clips a global batch holds is `shards.order` and nothing else; here they are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.data.config import DataConfig
from cpprune.data.memory import Resident, load_resident, torch_dtype
from cpprune.data.prefetch import Feed, Fetch
from cpprune.models.example import example_input
from shards.errors import InputError
from shards.files.atomic import writing
from shards.order import batch_ids, epoch_order, num_batches, permutation, rank_slice

if TYPE_CHECKING:
    from cpprune.models.artifact import Model
    from shards.reader import Dataset, Split


@dataclass(frozen=True)
class Batch:
    """A global batch, of which this rank holds the clips `start` to `stop`.

    Attributes:
        number: position in the epoch.
        ids: rows of the index, of the whole global batch [B].
        start: first clip of this rank.
        stop: one past its last.
        clips: this rank's clips, [stop − start, …], int16 waveforms or uint8 images; on a GPU if they
            were brought there ahead of the step.
    """

    number: int
    ids: NDArray[np.int64]
    start: int
    stop: int
    clips: Tensor


def open_checked(
    path: str, model: Model, cache: str | None = None, cache_bytes: int = 0
) -> Dataset:
    """Open a dataset and check that it fits the model; see `shards.open_dataset`.

    Raises:
        InputError: no such dataset, or its rate, shape or classes are not the model's.
    """
    import shards

    dataset = shards.open_dataset(path, cache, cache_bytes)
    check_fits(dataset, model)
    return dataset


def check_fits(dataset: Dataset, model: Model) -> None:
    """Raise InputError, naming what differs, unless the dataset's clips fit the model."""
    path = dataset.path
    if dataset.kind == "image" and model.sample_rate is not None:
        raise InputError(
            f"{path}: holds images of shape {list(dataset.shape)}, but the model's front end wants "
            f"audio at {model.sample_rate} Hz; for images set features.preset=image"
        )
    if dataset.kind == "audio" and model.sample_rate is None:
        raise InputError(
            f"{path}: holds audio, but the model takes images of shape {list(model.clip_shape)}; "
            "for audio set features.preset to cpjku22_256, passt_128, dcase24 or cpjku23"
        )
    if dataset.sample_rate != model.sample_rate:
        raise InputError(
            f"{path}: sample rate {dataset.sample_rate} Hz, but the model's is {model.sample_rate} "
            f"Hz; build the dataset with --sample-rate {model.sample_rate}"
        )
    if tuple(dataset.shape) != tuple(model.clip_shape):
        raise InputError(
            f"{path}: clips have shape {list(dataset.shape)}, but the model was made for "
            f"{list(model.clip_shape)}; build the dataset with clips of the same length"
        )
    spec = model.features.spec
    if spec is not None and dataset.shape[0] < model.features.min_samples:
        raise InputError(
            f"{path}: clips of {dataset.shape[0]} samples are too short for features.n_fft"
            f"={spec.n_fft}; build the dataset with longer clips (--seconds)"
        )
    if tuple(dataset.classes) != model.classes:
        odd = sorted(set(dataset.classes) ^ set(model.classes)) or ["their order"]
        raise InputError(
            f"{path}: has other classes than the model (differing: {', '.join(odd[:5])}"
            f"{' …' if len(odd) > 5 else ''}); evaluate it with a model trained on these classes"
        )
    try:
        with torch.no_grad():
            example = example_input(model.network, model.input_shape)
            was_training = model.network.training
            model.network.eval()(example)
            model.network.train(was_training)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path}: its clips give the network an input of shape {list(model.input_shape)}, which it "
            f"cannot take ({reason}); build the dataset with longer clips (--seconds)"
        ) from None


def training_positions(split: Split, fraction: float) -> NDArray[np.int64]:
    """Return the positions within the split that are trained on.

    Whole recordings are taken, in an order that does not depend on the fraction, until this part of
    the clips is reached.
    """
    if fraction == 1:
        return np.arange(len(split), dtype=np.int64)
    recordings, which = np.unique(split.column("recording"), return_inverse=True)
    place = np.empty(len(recordings), np.int64)
    place[permutation(len(recordings), len(recordings))] = np.arange(len(recordings))
    clips_before = np.cumsum(np.bincount(place[which])) - np.bincount(place[which])
    return np.flatnonzero(clips_before[place[which]] < fraction * len(split))


class TrainingBatches:
    """The training split in global batches, epoch by epoch.

    Args:
        dataset: an open dataset.
        config: see `DataConfig`.
        batch_size: B, the global batch size.
        seed: of the order.
        rank: this process's number.
        world: how many processes there are.
        device: what they are trained on.
        ids_file: where to record the ids of this rank's batches, or None.
        alive: called now and then while clips are brought into memory.
    """

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
        ids_file: Path | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        split = dataset.split("train")
        positions = training_positions(split, config.train_fraction)
        self.dataset = dataset
        self.rows = split.ids[positions]
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world = rank, world
        self.ids_file = ids_file
        self.config, self.device, self.alive = config, device, alive
        self.resident: Resident | None = None
        self._validation: Fetch | None = None
        self._to_validate = dataset.split("val").ids
        self._feed: Feed | None = None
        self._loader: Any = None
        self._loaded = False

    def __len__(self) -> int:
        return num_batches(len(self.rows), self.batch_size)

    @property
    def clips(self) -> int:
        """Number of clips in an epoch."""
        return len(self.rows)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the global batches of an epoch from number `first` on; every rank has to call it.

        What they hold is fetched ahead where it is remote, and after it the validation split.

        Raises:
            InputError: clips cannot be read, or not be kept where they should.
        """
        if not self._loaded:
            self._load()
        order = epoch_order(len(self.rows), self.seed, epoch)
        if self.resident is None:
            self._expect(self.rows[order[first * self.batch_size :]])
        else:
            self._expect(self.rows[:0])
        plan: list[tuple[NDArray[np.int64], int, int]] = []
        for number in range(first, len(self)):
            positions = batch_ids(order, number, self.batch_size)
            own = rank_slice(np.arange(len(positions)), self.rank, self.world)
            plan.append((positions, int(own[0]) if len(own) else 0, len(own)))
        own_positions = [positions[start : start + n] for positions, start, n in plan]
        for offset, clips in enumerate(self._fetch_all(own_positions)):
            positions, start, n = plan[offset]
            batch = Batch(first + offset, self.rows[positions], start, start + n, clips)
            self._record(epoch, batch)
            yield batch

    def validation(self) -> Fetch:
        """Return what fetches clips of the validation split, by their position in it.

        They are kept as the training clips are. Every rank has to call it.

        Raises:
            InputError: clips cannot be read, or not be kept where they should.
        """
        if self._validation is None:
            split, where = self.dataset.split("val"), self.config.in_memory
            kept = load_resident(self.dataset, split.ids, where, self.device, self.alive)
            self._validation = kept.fetch if kept else lambda at: torch.from_numpy(split.fetch(at))
            self._to_validate = self.rows[:0] if kept else split.ids
        return self._validation

    def _fetch_all(self, own: list[NDArray[np.int64]]) -> Iterator[Tensor]:
        if self._feed is not None:
            yield from self._feed.batches(own)
        elif self._workers:
            self._batches.plan = [self.rows[positions] for positions in own]
            for found in self._loader:
                if isinstance(found, Exception):
                    raise found
                yield found
        else:
            for positions in own:
                yield self._fetch(positions)

    def _fetch(self, positions: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        if self.resident is not None:
            return self.resident.fetch(positions, out)
        rows = self.rows[positions]
        return torch.from_numpy(self.dataset.fetch(rows, None if out is None else out.numpy()))

    def _load(self) -> None:
        where, device = self.config.in_memory, self.device
        self.resident = load_resident(self.dataset, self.rows, where, device, self.alive)
        self._workers = 0 if self.resident else self.config.workers
        if device.type == "cuda" and not self._workers:
            self._feed = self._make_feed()
        self.validation()  # now: what does not fit is refused before anything was trained
        self._loaded = True

    def _make_feed(self) -> Feed:
        most = -(-self.batch_size // self.world)
        if self.resident is not None and self.resident.clips.is_cuda:
            gather = self.resident.gather
            return Feed(self.device, (), torch.int64, most, _copy_positions, gather)
        dtype, shape = torch_dtype(self.dataset), self.dataset.shape
        return Feed(self.device, shape, dtype, most, self._fetch)

    @property
    def _batches(self) -> _PlannedBatches:
        if self._loader is None:
            from torch.utils.data import DataLoader

            self._loader = DataLoader(
                _WholeBatches(self.dataset),
                sampler=_PlannedBatches(),
                batch_size=None,
                num_workers=self._workers,
                persistent_workers=True,
                pin_memory=torch.cuda.is_available(),
                multiprocessing_context="forkserver",
            )
        batches: _PlannedBatches = self._loader.sampler
        return batches

    def _expect(self, rows: NDArray[np.int64]) -> None:
        self.dataset.prefetch(np.concatenate((rows, self._to_validate)))

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


def _copy_positions(positions: NDArray[np.int64], out: Tensor) -> None:
    out.copy_(torch.from_numpy(positions))


class _WholeBatches(torch.utils.data.Dataset[Tensor | Exception]):
    """What a worker does: read the batch that it is told to."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, ids: NDArray[np.int64]) -> Tensor | Exception:
        try:
            return torch.from_numpy(self.dataset.fetch(ids))
        except (InputError, OSError) as error:
            return error  # what a loader raises again holds a worker's traceback as its message


class _PlannedBatches(torch.utils.data.Sampler[NDArray[np.int64]]):
    """The batches still to read, decided before the first is asked for."""

    def __init__(self) -> None:
        self.plan: list[NDArray[np.int64]] = []

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)
