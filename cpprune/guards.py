"""What goes wrong in a run without anybody's asking: gradients that are no numbers, ranks that hang."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from cpprune import rendezvous, zero
from cpprune.checkpoint import Progress
from cpprune.data import Batch
from cpprune.distributed import largest, on_rank_0, rank, world_size
from cpprune.divergence import REMEDY, DivergenceError
from cpprune.run import Journal
from shards.reader import Dataset

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# Steps after which the host looks whether any of them was skipped.
EVERY_STEPS = 50


class SkippedSteps:
    """Counts and names the steps that were skipped, without asking the device at every step.

    Args:
        dataset: whose clips are named.
        journal: where they are named.
        most: how many there may be.
        device: of this rank's tensors.
    """

    def __init__(self, dataset: Dataset, journal: Journal, most: int, device: torch.device) -> None:
        self.dataset, self.journal, self.most, self.device = dataset, journal, most, device
        # Number, ids and flag of each step; not its clips, which the device's memory is needed for.
        self.recent: list[tuple[int, NDArray[np.int64], Tensor]] = []

    def add(self, batch: Batch, skipped: Tensor) -> None:
        """Remember a step and whether it was skipped (on the device)."""
        self.recent.append((batch.number, batch.ids, skipped))

    def settle(self, progress: Progress, now: bool = True) -> None:
        """Look which of the steps since the last time were skipped, on any rank. All have to call it.

        Args:
            progress: counts them, and no longer counts their clips.
            now: or only when there are many.

        Raises:
            DivergenceError: there are more than there may be; it names the clips of the last.
        """
        if not self.recent or (not now and len(self.recent) < EVERY_STEPS):
            return
        flags = largest(torch.stack([flag for *_, flag in self.recent]).int()).tolist()
        recent, self.recent = self.recent, []
        for (batch, ids, _), flag in zip(recent, flags, strict=True):
            if not flag:
                continue
            progress.skipped += 1
            progress.clips_seen -= len(ids)
            keys = [self.dataset.key(int(row)) for row in ids]
            step = progress.step - progress.batch + batch + 1
            record = {"event": "skipped", "epoch": progress.epoch, "step": step, "batch": batch}
            on_rank_0(partial(self.journal.log, record | {"clips": keys}), self.device)
            what = (
                f"epoch {progress.epoch + 1}, batch {batch + 1}: the gradient is not finite "
                f"(clips {', '.join(keys[:8])}{' …' if len(keys) > 8 else ''})"
            )
            if zero.asked_for() or progress.skipped > self.most:
                raise DivergenceError(
                    f"{what}; {progress.skipped} such step(s), train.max_skipped is {self.most}: look "
                    f"at these clips, {REMEDY}"
                )
            self.journal.say(f"{what}: the step is skipped")


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
