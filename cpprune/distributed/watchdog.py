"""Ends a run in which a rank hangs, and names that rank."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress

import torch.distributed as dist

from cpprune.deps.torch import Store
from cpprune.distributed import rendezvous
from cpprune.distributed.process_group import rank, world_size


class Watchdog:
    """Ends the process if a step takes too long, and names the rank that hangs.

    A thread of each rank writes the rank's last step and the time to a store. A rank whose thread has
    stopped writing is not running at all; otherwise the rank that is the furthest behind is the one that
    the others wait for.

    Args:
        seconds: how long to wait for a step.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.step = 0
        self.last_progress = time.monotonic()
        self.finished = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        store = rendezvous.watchdog_store()
        if store is not None:
            self.thread = threading.Thread(target=self._watch, args=(store,), daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        if self.thread is not None:
            self.thread.join()

    def progress(self, step: int) -> None:
        """Report that this rank is alive and has reached a step."""
        self.step, self.last_progress = step, time.monotonic()

    def _watch(self, store: Store) -> None:
        own, world = rank(), world_size()
        seen: dict[int, tuple[str, float]] = {}  # last heartbeat of each rank, and when it arrived
        while not self.finished.wait(min(1.0, self.seconds / 10)):
            try:
                store.set(f"cpprune/{own}", f"{self.step} {time.time()}")
                for other in range(world):
                    if store.check([f"cpprune/{other}"]):
                        heartbeat = store.get(f"cpprune/{other}").decode()
                        if seen.get(other, ("", 0.0))[0] != heartbeat:
                            seen[other] = (heartbeat, time.monotonic())
            except (RuntimeError, dist.DistError):
                pass  # the process that holds the store hangs, or has ended
            waited = time.monotonic() - self.last_progress
            if waited > self.seconds:
                self._end(waited, seen, world)

    def _end(self, waited: float, seen: dict[int, tuple[str, float]], world: int) -> None:
        now = time.monotonic()
        silent = [r for r in range(world) if now - seen.get(r, ("", 0.0))[1] > self.seconds / 2]
        steps = {r: int(heartbeat.split()[0]) for r, (heartbeat, _) in seen.items()}
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
