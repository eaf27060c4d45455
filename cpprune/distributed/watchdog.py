"""Ends a run in which a rank hangs, and names that rank."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import torch.distributed as dist

from cpprune.distributed import rendezvous
from cpprune.distributed.process_group import rank, world_size

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


class Watchdog:
    """Ends the process when no step was taken for too long, and names the rank that hangs.

    Each rank's thread tells a store how far its rank has come. A rank that is stopped or stuck is the
    one that fell behind; one whose thread says nothing any more is not running at all.

    Args:
        seconds: how long to wait for a step.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.step = 0
        self.moved = time.monotonic()
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        store = rendezvous.spare_store()
        if store is not None:
            self.thread = threading.Thread(target=self._watch, args=(store,), daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.thread is not None:
            self.thread.join()

    def progress(self, step: int) -> None:
        """Say that the run is alive and has come this far."""
        self.step, self.moved = step, time.monotonic()

    def _watch(self, store: Store) -> None:
        own, world = rank(), world_size()
        seen: dict[int, tuple[str, float]] = {}
        pause = min(1.0, self.seconds / 10)
        while not self.over.wait(pause):
            try:
                store.set(f"cpprune/{own}", f"{self.step} {time.time()}")
                for other in range(world):
                    if store.check([f"cpprune/{other}"]):
                        said = store.get(f"cpprune/{other}").decode()
                        if seen.get(other, ("", 0.0))[0] != said:
                            seen[other] = (said, time.monotonic())
            except (RuntimeError, dist.DistError):
                pass  # the process that holds the store hangs, or is gone
            waited = time.monotonic() - self.moved
            if waited > self.seconds:
                self._end(waited, seen, world)

    def _end(self, waited: float, seen: dict[int, tuple[str, float]], world: int) -> None:
        now = time.monotonic()
        silent = [r for r in range(world) if now - seen.get(r, ("", 0.0))[1] > self.seconds / 2]
        steps = {r: int(said.split()[0]) for r, (said, _) in seen.items()}
        behind = [r for r in steps if steps[r] == min(steps.values())]
        ranks, state = (silent, "does not run") if silent else (behind, "is the furthest behind")
        with suppress(OSError):
            sys.stderr.write(
                f"cpprune: error (rank {rank()}): no step for {waited:.0f} s: rank "
                f"{', '.join(map(str, ranks))} {state}; the same command goes on from the last "
                "checkpoint\n"
            )
            sys.stderr.flush()
        os._exit(1)
