"""Rendezvous of the processes of a run, safe against restarts by an elastic launcher.

torchrun and `accelerate launch` give restarted processes the store of the processes before them, which
still holds the addresses of those that have ended; gloo may read such an address and wait for it until
the timeout. So the processes of each start first agree on a name that no other start has, and use it as
the prefix of their addresses.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from cpprune.deps.torch import PrefixStore, Store, TCPStore

POLL_SECONDS = 0.02
_watchdog_store: Store | None = None


def join(rank: int, world_size: int, timeout: timedelta) -> None:
    """Initialise torch's default process group from the environment: NCCL on GPUs, else gloo.

    Raises:
        torch.distributed.DistError: not all processes joined in time.
    """
    global _watchdog_store
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    _watchdog_store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=min(timeout, timedelta(seconds=60)),
    )
    name = agree(store, rank, world_size, timeout)
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(name, store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def watchdog_store() -> Store | None:
    """Return the watchdog's own connection to the store; None for a single process.

    The process group's connection is of no use to it: a call that hangs there blocks all others. Both
    are made together, because the process that holds the store may end soon after.
    """
    return _watchdog_store


def leave() -> None:
    """Leave the process group, if there is one."""
    global _watchdog_store
    _watchdog_store = None
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Return a name that all processes of this start share, and no process of an earlier one.

    Each other rank writes a random call until rank 0 has answered exactly that call; rank 0 answers new
    calls, whatever an earlier start has left, until every rank has acknowledged its name.

    Raises:
        torch.distributed.DistStoreError: not all processes joined in time.
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
    time.sleep(POLL_SECONDS)
