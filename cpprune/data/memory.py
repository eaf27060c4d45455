"""Clips in memory: on the GPU, or once a node in memory that its processes share.

Shared memory is a `memfd`: it has no name, belongs to no file system, and is gone with the last process
that holds it, however that ends. The other processes of the node open it through `/proc`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.data.free_memory import available_memory
from cpprune.distributed.collectives import gather_json
from cpprune.distributed.process_group import rank
from shards.errors import InputError
from shards.progress import progress
from shards.workers import cpu_count

if TYPE_CHECKING:
    from shards.reader import Dataset

# With auto, clips take at most this part of the memory that is free: the rest is for training.
AUTO_SHARE = 0.5
MOST_THREADS = 8
SHOWN_BYTES = 1 << 28  # less than this is loaded before anybody could read that it is


@dataclass(frozen=True)
class _Process:
    """What the processes tell each other of where they run, and of what is free there."""

    rank: int
    node: str
    pid: int
    host_free: int
    device_free: int


class Resident:
    """Clips in memory.

    Attributes:
        clips: [n, *shape], on the host or on a GPU.
    """

    def __init__(self, clips: Tensor) -> None:
        self.clips = clips

    def fetch(self, positions: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Return clips [n, *shape] by their position; `out`, if given, lies where they do."""
        index = torch.from_numpy(positions).to(self.clips.device)
        if out is None:
            return self.clips.index_select(0, index)
        return torch.index_select(self.clips, 0, index, out=out)

    def gather(self, index: Tensor) -> Tensor:
        """Return clips [n, *shape] on the GPU, by a tensor of positions there."""
        return self.clips.index_select(0, index)


def load_resident(
    dataset: Dataset,
    rows: NDArray[np.int64],
    where: str,
    device: torch.device,
    alive: Callable[[], None] = lambda: None,
) -> Resident | None:
    """Read clips into memory, each once, at the speed of the disk; every rank has to call it.

    Args:
        dataset: where they are.
        rows: of the index, ascending.
        where: see `DataConfig`. `device` is `host` on a machine without a GPU; `auto` is the GPU if the
            clips take no more than half of what is free on every one, else the host likewise, else off.
        device: of this rank.
        alive: called after every shard.

    Returns:
        The clips in the order of `rows`, the same on every rank; or None, if they are not kept.

    Raises:
        InputError: on every rank: a clip is damaged, or there is no room.
    """
    size = len(rows) * int(np.prod(dataset.shape)) * dataset.dtype.itemsize
    everyone = _everyone(device)
    choice = _choose(where, size, everyone, device)
    if choice == "off":
        return None
    peers = [p for p in everyone if p.node == everyone[rank()].node]
    if choice == "device":
        clips = torch.empty((len(rows), *dataset.shape), dtype=torch_dtype(dataset), device=device)
        share = 1, 0
    else:
        array = _shared_array((len(rows), *dataset.shape), dataset.dtype, peers, device)
        if array is None:
            if where == "auto":
                return None
            raise InputError(
                "data.in_memory=host: the processes of this node cannot open each other's memory "
                "through /proc; set data.in_memory=off"
            )
        clips = torch.from_numpy(array)
        share = len(peers), [p.rank for p in peers].index(rank())
    threads = 1 if dataset.folder.one_by_one else max(2, cpu_count() // len(peers))
    error = _fill(clips, dataset, rows, share, min(threads, MOST_THREADS), alive)
    if errors := [text for text in gather_json(error, device) if text is not None]:
        raise InputError(errors[0])
    return Resident(clips)


def torch_dtype(dataset: Dataset) -> torch.dtype:
    """Return the dtype of a tensor of this dataset's clips."""
    return torch.from_numpy(np.empty(0, dataset.dtype)).dtype


def _everyone(device: torch.device) -> list[_Process]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    own = _Process(
        rank=rank(),
        node=f"{boot} {Path('/proc/self/ns/pid').readlink()}",
        pid=os.getpid(),
        host_free=available_memory(),
        device_free=torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0,
    )
    return [_Process(**found) for found in gather_json(asdict(own), device)]


def _choose(where: str, size: int, everyone: Sequence[_Process], device: torch.device) -> str:
    """Return off, host or device, the same on every rank."""
    free = {"host": min(p.host_free for p in everyone)}
    if device.type == "cuda":
        free["device"] = min(p.device_free for p in everyone)
    elif where == "device":
        where = "host"
    if where == "auto":
        fitting = [name for name, room in free.items() if size <= AUTO_SHARE * room]
        return fitting[-1] if fitting else "off"
    if where != "off" and size > free[where]:
        what = "GPU" if where == "device" else "machine"
        raise InputError(
            f"data.in_memory={where}: {size / 1e9:.1f} GB of clips do not fit into the "
            f"{free[where] / 1e9:.1f} GB that are free on a {what}; set data.in_memory=auto, which "
            "keeps them where they fit"
        )
    return where


def _shared_array(
    shape: tuple[int, ...], dtype: np.dtype[Any], peers: Sequence[_Process], device: torch.device
) -> NDArray[Any] | None:
    """Return an array that all processes of the node see; None on all ranks if one cannot see it."""
    size = int(np.prod(shape)) * dtype.itemsize
    first, alone = peers[0].rank == rank(), len(peers) == 1
    file = _anonymous_file(size) if first and not alone else None
    files = gather_json(file, device)
    array = np.empty(shape, dtype) if alone else None
    with suppress(OSError):
        if not first:
            file = os.open(f"/proc/{peers[0].pid}/fd/{files[peers[0].rank]}", os.O_RDWR)
        if file is not None:
            array = np.frombuffer(mmap.mmap(file, size), dtype).reshape(shape)
    # The first one's descriptor has to stay until all have opened it.
    everywhere = all(gather_json(array is not None, device))
    if file is not None:
        os.close(file)
    return array if everywhere else None


def _anonymous_file(size: int) -> int | None:
    """Return the descriptor of a file in memory; None if this process may have none so large."""
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
    share: tuple[int, int],
    threads: int,
    alive: Callable[[], None],
) -> str | None:
    """Read every n-th shard from the k-th on; return what went wrong, or None."""
    n, k = share
    parts = dataset.by_shard(rows)[k::n]
    dataset.prefetch(np.concatenate([rows[part] for part in parts]) if parts else rows[:0])

    def read(part: slice) -> int:
        if clips.is_cuda:
            clips[part].copy_(torch.from_numpy(dataset.fetch_shard(rows[part])))
        else:
            dataset.fetch_shard(rows[part], clips[part].numpy())
        return len(rows[part])

    total = sum(len(rows[part]) for part in parts)
    what = f"Loading clips into the memory of the {'GPU' if clips.is_cuda else 'machine'}"
    with (
        progress(what, total, show=rank() == 0 and clips.nbytes > SHOWN_BYTES) as advance,
        ThreadPoolExecutor(threads) as pool,
    ):
        try:
            for done in as_completed([pool.submit(read, part) for part in parts]):
                advance(done.result())
                alive()
        except InputError as error:
            pool.shutdown(cancel_futures=True)
            return str(error)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return None
