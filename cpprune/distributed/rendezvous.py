"""How the processes of a run find one another, also when a launcher starts them anew.

torchrun and `accelerate launch` hand processes that they start again the store of those before them,
in which the addresses of the dead still stand; gloo may read one, and wait for it until the timeout.
So each start first agrees on a name that no other start has, and keeps its addresses under it.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PAUSE_SECONDS = 0.02
_spare: Store | None = None


def join(rank: int, world_size: int, timeout: timedelta) -> None:
    """Initialise torch's default process group from the environment: NCCL on GPUs, else gloo.

    Raises:
        torch.distributed.DistError: not all processes came in time.
    """
    global _spare
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    _spare = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=min(timeout, timedelta(seconds=60)),
    )
    name = agree(store, rank, world_size, timeout)
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(name, store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def spare_store() -> Store | None:
    """Return a second connection to the store, for when the process group's hangs; None of one process.

    It is made with the first, because the process that holds the store may be gone soon after.
    """
    return _spare


def leave() -> None:
    """Leave the process group, if there is one."""
    global _spare
    _spare = None
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Return a name that all processes of this start share, and none of an earlier one.

    Every other rank calls with a word of its own until rank 0 has answered just that word; rank 0 goes
    on answering, whatever stood there before, until all have taken its name.

    Raises:
        torch.distributed.DistStoreError: not all processes came in time.
    """
    own, end = uuid4().hex, time.monotonic() + timeout.total_seconds()
    answered: dict[int, str] = {}
    while rank == 0:
        missing = [r for r in range(1, world_size) if _read(store, f"start/taken/{r}") != own]
        if not missing:
            return own
        for other in missing:
            call = _read(store, f"start/call/{other}")
            if call and answered.get(other) != call:
                store.set(f"start/answer/{other}", f"{call} {own}")
                answered[other] = call
        _wait(end, f"rank {', '.join(map(str, missing))} did not come")
    store.set(f"start/call/{rank}", own)
    while True:
        call, _, name = _read(store, f"start/answer/{rank}").partition(" ")
        if call == own:
            store.set(f"start/taken/{rank}", name)
            return name
        _wait(end, "rank 0 did not come")


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(end: float, what: str) -> None:
    if time.monotonic() > end:
        raise dist.DistStoreError(what)
    time.sleep(PAUSE_SECONDS)
