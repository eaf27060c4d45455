"""One optimizer step on a global batch, in the order of the mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.audio.augment import augmented, sample
from cpprune.audio.impulse_responses import ImpulseResponses
from cpprune.config import RunConfig
from cpprune.data.loader import Batch
from cpprune.distill.loss import targets
from cpprune.distill.teaching import Teaching
from cpprune.distributed import collectives, process_group
from cpprune.pruning.regularizers import Penalty
from cpprune.training.engine import Engine
from cpprune.training.trial import seed_generators


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step, on the device; nothing here waits for it.

    Attributes:
        loss_sum: sum of the losses of this rank's clips; 0 if the step was skipped.
        skipped: whether it was, because the gradient was not finite.
        seen: the teachers' logits [b, K] of this rank's augmented clips, or None.
    """

    loss_sum: Tensor
    skipped: Tensor
    seen: Tensor | None = None


class TrainingStep:
    """Takes optimizer steps.

    Args:
        config: of the run.
        engine: the network and its optimizer.
        labels: of every row of the dataset's index.
        responses: impulse responses to convolve clips with, or None.
        teaching: the teachers, if there are any.

    Attributes:
        regularizer: penalty on the weights that is added to the loss, or None; set by the caller.
    """

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        labels: NDArray[np.int64],
        responses: ImpulseResponses | None = None,
        teaching: Teaching | None = None,
    ) -> None:
        self.config, self.engine, self.labels, self.teaching = config, engine, labels, teaching
        self.responses = responses
        self._waves = None if responses is None else responses.waves.to(engine.device)
        self.regularizer: Penalty | None = None
        self._run = engine.capture(self._step)

    def __call__(self, epoch: int, batch: Batch, step: int) -> StepResult:
        """Train on this rank's part of a global batch.

        Args:
            epoch: from 0.
            batch: this rank's part of it.
            step: number of this step in the run, from 0.
        """
        inputs = self.inputs(epoch, batch, step)
        # What the network draws by itself, as dropout does, depends on this alone.
        rank, device = process_group.rank(), self.engine.device
        seed_generators(device, self.config.seed, epoch, batch.number, rank)
        result = StepResult(*self._run(inputs, len(batch.ids)))
        if result.seen is not None and self.teaching is not None and self.teaching.cache:
            self.teaching.cache.keep(result.seen, len(batch.ids))
        return result

    def inputs(self, epoch: int, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return all that differs from step to step, on the host but for clips that are not."""
        config, spec = self.config, self.engine.model.features.spec
        of_batch = config.seed, epoch, batch.number, len(batch.ids)
        number = 0 if self.responses is None else len(self.responses.waves)
        sampled = sample(config.augment, spec, *of_batch, number)
        if self.responses is not None and sampled.response is not None:
            allowed = self.responses.allowed(sampled.response, batch.ids)
            sampled = replace(sampled, response=allowed)
        rows = slice(batch.start, batch.stop)
        inputs = {
            "clips": batch.clips,
            "labels": torch.from_numpy(self.labels[batch.ids[rows]]),
            "epoch": torch.tensor(float(epoch), dtype=torch.float64),
            "number": torch.tensor(float(step), dtype=torch.float64),
            **sampled.of_rows(rows),
        }
        partners = None
        if sampled.mixup is not None:
            partners = batch.ids[sampled.mixup[1][rows]]
            inputs["partner_labels"] = torch.from_numpy(self.labels[partners])
        if self.teaching is not None:
            first = batch.number * config.train.batch_size
            places = slice(first + batch.start, first + batch.stop)
            inputs |= self.teaching.inputs(batch.ids[rows], partners, places)
        return inputs

    def _step(self, inputs: Mapping[str, Tensor], total: int) -> tuple[Tensor, ...]:
        """Take a step on `inputs`, which lie on the device; see `cuda_graph.Captured`.

        Args:
            inputs: from `self.inputs`.
            total: clips in the global batch.

        Returns:
            `StepResult`'s fields that are not None.
        """
        engine, features, distill = self.engine, self.engine.features, self.config.distill

        def gather(own: Tensor) -> Tensor:
            return collectives.all_gather_rows(own, total)

        buffers_before = engine.buffers()
        x = augmented(features, inputs["clips"], inputs, self.config.augment, gather, self._waves)
        teaching = self.teaching
        seen = None
        if teaching is not None:
            seen = teaching.see(x, features.spec, inputs, gather, self._waves)
        wanted = targets(inputs, seen)
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        for rows, last in engine.micro_batches(total):
            losses = wanted.losses(engine.forward(x[rows]), rows, distill)
            # The engine averages the ranks' gradients; the mean over the global batch is wanted.
            micro_batch_sum = losses.sum()
            loss = micro_batch_sum * (process_group.world_size() / total)
            if last and self.regularizer is not None:
                loss = loss + self.regularizer(inputs["epoch"])
            engine.backward(loss)
            loss_sum += micro_batch_sum.detach()
        skipped = engine.update(loss_sum, buffers_before, inputs["number"])
        result = torch.where(skipped, 0.0, loss_sum), skipped
        return result if seen is None else (*result, seen)
