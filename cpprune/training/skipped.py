"""Steps skipped because their gradient is not finite."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.data.loader import Batch
from cpprune.distributed import deepspeed
from cpprune.distributed.collectives import all_reduce_max
from cpprune.runs.checkpoint import Progress
from cpprune.runs.divergence import REMEDY, DivergenceError
from cpprune.runs.folder import RunFolder
from cpprune.runs.records import SkippedRecord
from shards.reader import Dataset

# Steps after which the host looks whether any of them was skipped.
EVERY_STEPS = 50


class SkippedSteps:
    """Counts and reports skipped steps, without waiting for the device at every step.

    Args:
        dataset: whose clips are named.
        run: in whose log they are named.
        most: how many there may be.
        device: of this rank's tensors.
    """

    def __init__(self, dataset: Dataset, run: RunFolder, most: int, device: torch.device) -> None:
        self.dataset, self.run, self.most, self.device = dataset, run, most, device
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
        flags = all_reduce_max(torch.stack([flag for *_, flag in self.recent]).int()).tolist()
        recent, self.recent = self.recent, []
        for (batch, ids, _), flag in zip(recent, flags, strict=True):
            if not flag:
                continue
            progress.skipped += 1
            progress.clips_seen -= len(ids)
            keys = [self.dataset.key(int(row)) for row in ids]
            step = progress.step - progress.batch + batch + 1
            epoch = progress.epoch
            self.run.write_log(SkippedRecord(epoch=epoch, step=step, batch=batch, clips=keys))
            what = (
                f"epoch {progress.epoch + 1}, batch {batch + 1}: the gradient is not finite "
                f"(clips {', '.join(keys[:8])}{' …' if len(keys) > 8 else ''})"
            )
            if deepspeed.is_requested() or progress.skipped > self.most:
                raise DivergenceError(
                    f"{what}; {progress.skipped} such step(s), train.max_skipped is {self.most}: look "
                    f"at these clips, {REMEDY}"
                )
            self.run.say(f"{what}: the step is skipped")
