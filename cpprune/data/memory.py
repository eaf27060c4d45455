"""Clips kept in memory: on every GPU, or once per node in memory that its processes share.

The shared memory is a `memfd`: it has no name, belongs to no file system, and is freed with the last
process that holds it, however that process ends. The node's other processes open it through `/proc`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.data.free_memory import available_memory
from cpprune.distributed.collectives import all_gather_json
from cpprune.distributed.process_group import rank
from shards.errors import UserError
from shards.progress import progress
from shards.workers import cpu_count

if TYPE_CHECKING:
    from shards.reader import Dataset

# With auto, clips take at most this fraction of the free memory: the rest is for training.
AUTO_FRACTION = 0.5
MOST_THREADS = 8
SHOWN_BYTES = 1 << 28  # less is loaded faster than a progress line can be read


@dataclass(frozen=True)
class _Process:
    """Where a process runs, and how many bytes are free there; exchanged by all ranks."""

    rank: int
    node: str
    pid: int
    host_free: int
    device_free: int


class InMemoryClips:
    """The clips of a split in memory.

    Args:
        clips: [n, *shape], on the host or on a GPU.
    """

    def __init__(self, clips: Tensor) -> None:
        self.clips = clips

    def fetch(self, positions: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Return the clips [n, *shape] at these positions; `out`, if given, is on the same device."""
        index = torch.from_numpy(positions).to(self.clips.device)
        if out is None:
            return self.clips.index_select(0, index)
        return torch.index_select(self.clips, 0, index, out=out)

    def gather(self, index: Tensor) -> Tensor:
        """Return the clips [n, *shape] at these positions, a tensor on the same device."""
        return self.clips.index_select(0, index)


def load_into_memory(
    dataset: Dataset,
    rows: NDArray[np.int64],
    where: str,
    device: torch.device,
    alive: Callable[[], None] = lambda: None,
) -> InMemoryClips | None:
    """Read clips into memory, each once and shard by shard. A collective operation.

    Args:
        dataset: dataset of the clips.
        rows: their rows of the index, ascending.
        where: see `DataConfig`. `device` means `host` on a machine without a GPU; `auto` is `device` if
            the clips take at most half of the free memory of every GPU, else `host` if they do so of
            every node's, else `off`.
        device: device of this rank.
        alive: called after every shard.

    Returns:
        The clips in the order of `rows`, the same on every rank; None if they are not kept in memory.

    Raises:
        UserError: on every rank, if a clip is damaged or there is no room.
    """
    size = len(rows) * int(np.prod(dataset.shape)) * dataset.dtype.itemsize
    processes = _all_processes(device)
    choice = _choose(where, size, processes, device)
    if choice == "off":
        return None
    peers = [p for p in processes if p.node == processes[rank()].node]
    if choice == "device":
        clips = torch.empty((len(rows), *dataset.shape), dtype=torch_dtype(dataset), device=device)
        of, part = 1, 0
    else:
        array = _shared_array((len(rows), *dataset.shape), dataset.dtype, peers, device)
        if array is None:
            if where == "auto":
                return None
            raise UserError(
                "data.in_memory=host: the processes of this node cannot open each other's memory "
                "through /proc; set data.in_memory=off"
            )
        clips = torch.from_numpy(array)
        of, part = len(peers), [p.rank for p in peers].index(rank())
    threads = 1 if dataset.folder.one_by_one else max(2, cpu_count() // len(peers))
    error = _fill(
        clips, dataset, rows, dataset.by_shard(rows)[part::of], min(threads, MOST_THREADS), alive
    )
    if errors := [text for text in all_gather_json(error, device) if text is not None]:
        raise UserError(errors[0])
    return InMemoryClips(clips)


def torch_dtype(dataset: Dataset) -> torch.dtype:
    """Return the torch dtype of a dataset's clips."""
    return torch.from_numpy(np.empty(0, dataset.dtype)).dtype


def _all_processes(device: torch.device) -> list[_Process]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    own = _Process(
        rank=rank(),
        node=f"{boot} {Path('/proc/self/ns/pid').readlink()}",
        pid=os.getpid(),
        host_free=available_memory(),
        device_free=torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0,
    )
    return [_Process(**found) for found in all_gather_json(asdict(own), device)]


def _choose(where: str, size: int, processes: Sequence[_Process], device: torch.device) -> str:
    """Return off, host or device, the same on every rank."""
    free = {"host": min(p.host_free for p in processes)}
    if device.type == "cuda":
        free["device"] = min(p.device_free for p in processes)
    elif where == "device":
        where = "host"
    if where == "auto":
        fitting = [name for name, room in free.items() if size <= AUTO_FRACTION * room]
        return fitting[-1] if fitting else "off"
    if where != "off" and size > free[where]:
        what = "GPU" if where == "device" else "machine"
        raise UserError(
            f"data.in_memory={where}: {size / 1e9:.1f} GB of clips do not fit into the "
            f"{free[where] / 1e9:.1f} GB that are free on a {what}; set data.in_memory=auto, which "
            "keeps them where they fit"
        )
    return where


def _shared_array(
    shape: tuple[int, ...],
    dtype: np.dtype[np.integer],
    peers: Sequence[_Process],
    device: torch.device,
) -> NDArray[np.integer] | None:
    """Return an array shared by all processes of the node; None on all ranks if one cannot open it."""
    size = int(np.prod(shape)) * dtype.itemsize
    first, alone = peers[0].rank == rank(), len(peers) == 1
    file = _anonymous_file(size) if first and not alone else None
    files = all_gather_json(file, device)
    array = np.empty(shape, dtype) if alone else None
    with suppress(OSError):
        if not first:
            file = os.open(f"/proc/{peers[0].pid}/fd/{files[peers[0].rank]}", os.O_RDWR)
        if file is not None:
            array = np.frombuffer(mmap.mmap(file, size), dtype).reshape(shape)
    # The first process keeps its descriptor until all have opened it.
    everywhere = all(all_gather_json(array is not None, device))
    if file is not None:
        os.close(file)
    return array if everywhere else None


def _anonymous_file(size: int) -> int | None:
    """Return the descriptor of a new file in memory; None if a limit forbids one of this size."""
    file = os.memfd_create("cpprune-clips", os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, size)
    except OSError:
        os.close(file)
        return None
    return file


def _fill(
    clips: Tensor,
    dataset: Dataset,
    rows: NDArray[np.int64],
    shards: Sequence[slice],
    threads: int,
    alive: Callable[[], None],
) -> str | None:
    """Read the clips of some shards, each a slice of `rows`; return an error message, or None."""
    dataset.prefetch(np.concatenate([rows[:0], *(rows[shard] for shard in shards)]))

    def read(shard: slice) -> int:
        if clips.is_cuda:
            clips[shard].copy_(torch.from_numpy(dataset.fetch_shard(rows[shard])))
        else:
            dataset.fetch_shard(rows[shard], clips[shard].numpy())
        return len(rows[shard])

    total = sum(len(rows[shard]) for shard in shards)
    what = f"Loading clips into the memory of the {'GPU' if clips.is_cuda else 'machine'}"
    with (
        progress(what, total, show=rank() == 0 and clips.nbytes > SHOWN_BYTES) as advance,
        ThreadPoolExecutor(threads) as pool,
    ):
        try:
            for done in as_completed([pool.submit(read, shard) for shard in shards]):
                advance(done.result())
                alive()
        except UserError as error:
            pool.shutdown(cancel_futures=True)
            return str(error)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return None
