"""One optimizer step on a global batch, in the order of the mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cpprune.audio.augment import augmented, sample
from cpprune.config import RunConfig
from cpprune.data.loader import Batch
from cpprune.distributed import collectives, process_group
from cpprune.pruning.regularizers import Penalty
from cpprune.training.engine import Engine


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step, on the device; nothing here waits for it.

    Attributes:
        loss_sum: sum of the losses of this rank's clips; 0 if the step was skipped.
        skipped: whether it was, because the gradient was not finite.
    """

    loss_sum: Tensor
    skipped: Tensor


class TrainingStep:
    """Takes optimizer steps.

    Args:
        config: of the run.
        engine: the network and its optimizer.
        labels: of every row of the dataset's index.

    Attributes:
        regularizer: what the loss has beside the cross-entropy, or None; set by the caller.
    """

    def __init__(self, config: RunConfig, engine: Engine, labels: NDArray[np.int64]) -> None:
        self.config, self.engine, self.labels = config, engine, labels
        self.regularizer: Penalty | None = None
        self._run = engine.capture(self._step)

    def __call__(self, epoch: int, batch: Batch, step: int) -> StepResult:
        """Train on this rank's part of a global batch.

        Args:
            epoch: from 0.
            batch: this rank's part of it.
            step: number of this step in the run, from 0.
        """
        return StepResult(*self._run(self.inputs(epoch, batch, step), len(batch.ids)))

    def inputs(self, epoch: int, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return all that differs from step to step, on the host but for clips that are not."""
        config, spec = self.config, self.engine.model.features.spec
        sampled = sample(config.augment, spec, config.seed, epoch, batch.number, len(batch.ids))
        rows = slice(batch.start, batch.stop)
        inputs = {
            "clips": batch.clips,
            "labels": torch.from_numpy(self.labels[batch.ids[rows]]),
            "epoch": torch.tensor(float(epoch), dtype=torch.float64),
            "number": torch.tensor(float(step), dtype=torch.float64),
            **sampled.of_rows(rows),
        }
        if sampled.mixup is not None:
            partners = batch.ids[sampled.mixup[1][rows]]
            inputs["partner_labels"] = torch.from_numpy(self.labels[partners])
        return inputs

    def _step(self, inputs: Mapping[str, Tensor], total: int) -> tuple[Tensor, Tensor]:
        """Take a step on `inputs`, which lie on the device; see `cuda_graph.Captured`.

        Args:
            inputs: from `self.inputs`.
            total: clips in the global batch.

        Returns:
            `StepResult`'s fields.
        """
        engine = self.engine
        buffers_before = engine.buffers()
        x = augmented(
            engine.features,
            inputs["clips"],
            inputs,
            self.config.augment,
            lambda own: collectives.all_gather_rows(own, total),
        )
        targets = _targets(inputs)
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        for rows, last in engine.micro_batches(total):
            logits = engine.forward(x[rows])
            losses = torch.stack(
                [
                    weight[rows] * functional.cross_entropy(logits, label[rows], reduction="none")
                    for label, weight in targets
                ]
            ).sum(0)
            # The engine averages the ranks' gradients; the mean over the global batch is wanted.
            loss = losses.sum() * (process_group.world_size() / total)
            if last and self.regularizer is not None:
                loss = loss + self.regularizer(inputs["epoch"])
            engine.backward(loss)
            loss_sum += losses.detach().sum()
        skipped = engine.update(loss_sum, buffers_before, inputs["number"])
        return torch.where(skipped, 0.0, loss_sum), skipped


def _targets(inputs: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the labels of this rank's clips and their weights; two of each under mixup."""
    own = inputs["labels"]
    if "mixup" not in inputs:
        return [(own, torch.ones(len(own), device=own.device))]
    lam = inputs["mixup"]
    return [(own, lam), (inputs["partner_labels"], 1 - lam)]
