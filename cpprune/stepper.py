"""One optimizer step on a global batch: front end, network, gradient, update. The hot path."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cpprune import distributed
from cpprune.artifact import Model
from cpprune.audio.augment import Draws, augmented, draw
from cpprune.audio.mel import LogMel
from cpprune.config import RunConfig
from cpprune.data import Batch
from cpprune.optim import build_optimizer
from shards.errors import InputError


class Forward(nn.Module):
    """What Accelerate wraps: the network in a shell of its own.

    Wrapping patches and replaces attributes of the module that it is given. The network inside
    stays untouched, so it can be cut, copied and saved, and the next shell is wrapped as if it were
    the first.
    """

    def __init__(self, network: nn.Module, compiled: bool) -> None:
        super().__init__()
        self.network = network
        self.call = torch.compile(network) if compiled else network

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """x_BCFT → logits [B, K]."""
        logits: Tensor = self.call(x_BCFT)
        return logits


class Stepper:
    """The network as Accelerate wraps it, its optimizer, and how a step is taken.

    Args:
        config: of the run.
        model: front end and network, unwrapped, on the device.
        labels: of every row of the dataset's index, on the device.
        accelerator: from `distributed.start`.

    Raises:
        InputError: nothing in the network can be trained.
    """

    def __init__(self, config: RunConfig, model: Model, labels: Tensor, accelerator: Any) -> None:
        self.config = config
        self.model = model
        self.labels = labels
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.wrap()

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapper."""
        inner: torch.optim.Optimizer = self.optimizer.optimizer
        return inner

    def wrap(self) -> None:
        """Make an optimizer for the network as it is now, and let Accelerate wrap both."""
        self.accelerator.free_memory()
        parameters = [p for p in self.model.network.parameters() if p.requires_grad]
        if not parameters:
            raise InputError("every parameter of the network is frozen: there is nothing to train")
        compiled = self.config.train.compile == "auto" and self.device.type == "cuda"
        self.wrapped, self.optimizer = self.accelerator.prepare(
            Forward(self.model.network, compiled), build_optimizer(self.config.optim, parameters)
        )
        if isinstance(self.wrapped, DistributedDataParallel):
            # Batch statistics are global, or shared when they are needed: not at every step.
            self.wrapped.broadcast_buffers = False

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every parameter."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def step(self, epoch: int, batch: Batch) -> Tensor:
        """Take one optimizer step on a global batch.

        Returns:
            The sum of the losses of this rank's clips, on the device: nothing here waits for it.
        """
        train, total = self.config.train, len(batch.ids)
        spec = self.model.features.spec if isinstance(self.model.features, LogMel) else None
        draws = draw(self.config.augment, spec, self.config.seed, epoch, batch.number, total)
        x = augmented(
            self.model.features,
            batch.clips.to(self.device, non_blocking=True),
            draws,
            self.config.augment,
            slice(batch.start, batch.stop),
            lambda own: distributed.gather_rows(own, total),
        )
        targets = self.targets(batch, draws)

        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        # The same number of micro-batches on every rank, and none that is empty on all of them.
        most = -(-total // distributed.world_size())
        size = -(-most // train.accumulation)
        for begin in range(0, most, size):
            some = slice(begin, begin + size)
            last = begin + size >= most
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                logits = self.wrapped(x[some].contiguous(memory_format=torch.channels_last))
                losses = torch.stack(
                    [
                        weight[some]
                        * functional.cross_entropy(logits.float(), label[some], reduction="none")
                        for label, weight in targets
                    ]
                ).sum(0)
                # Ranks' gradients are averaged: the mean over the global batch is what is wanted.
                self.accelerator.backward(losses.sum() * (distributed.world_size() / total))
            loss_sum += losses.detach().sum()
        if train.clip_norm:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss_sum

    def targets(self, batch: Batch, draws: Draws) -> list[tuple[Tensor, Tensor]]:
        """Return the labels of this rank's clips and their weights; two of each under mixup."""
        rows = slice(batch.start, batch.stop)
        ids = torch.from_numpy(batch.ids).to(self.device, non_blocking=True)
        label_B = self.labels[ids]
        own = label_B[rows]
        if draws.mixup is None:
            return [(own, torch.ones(len(own), device=self.device))]
        lam = torch.from_numpy(draws.mixup[0][rows]).to(self.device, non_blocking=True)
        partner = torch.from_numpy(draws.mixup[1][rows]).to(self.device, non_blocking=True)
        return [(own, lam), (label_B[partner], 1 - lam)]
