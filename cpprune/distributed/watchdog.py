"""Names the rank that hangs, and ends the run."""

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
from shards.log import LOG


class Watchdog:
    """Names the rank that hangs if a step takes too long, and ends the process if asked.

    A thread of each rank writes the rank's last step and the time to a store. A rank whose thread has
    stopped writing is not running at all; otherwise the rank that is the furthest behind is the one that
    the others wait for.

    Args:
        seconds: how long to wait for a step.
        ends_process: whether to end the process; otherwise the process group's own timeout has to.
    """

    def __init__(self, seconds: float, ends_process: bool) -> None:
        self.seconds = seconds
        self.ends_process = ends_process
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
                line = self._hanging(waited, seen, world)
                if not self.ends_process:
                    LOG.error(line)
                    return
                with suppress(OSError):
                    sys.stderr.write(f"cpprune: error (rank {own}): {line}\n")
                    sys.stderr.flush()
                os._exit(1)

    def _hanging(self, waited: float, seen: dict[int, tuple[str, float]], world: int) -> str:
        now = time.monotonic()
        silent = [r for r in range(world) if now - seen.get(r, ("", 0.0))[1] > self.seconds / 2]
        steps = {r: int(heartbeat.split()[0]) for r, (heartbeat, _) in seen.items()}
        behind = [r for r in steps if steps[r] == min(steps.values())]
        ranks, state = (silent, "does not run") if silent else (behind, "is the furthest behind")
        return (
            f"no step for {waited:.0f} s: rank {', '.join(map(str, ranks))} {state}; the same command "
            "goes on from the last checkpoint"
        )
