"""What is trained, as Accelerate wraps it, and one optimizer step on a global batch: the hot path."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cpprune.audio.augment import augmented, sample
from cpprune.config import RunConfig
from cpprune.data.loader import Batch
from cpprune.distributed import collectives, process_group
from cpprune.distributed import deepspeed as zero
from cpprune.models.artifact import Model
from cpprune.pruning.plan import Plan
from cpprune.pruning.pruner import Cut, prune_on_all_ranks
from cpprune.pruning.regularizers import Penalty
from cpprune.pruning.surgery import apply_plan
from cpprune.training import cuda_graph as capture
from cpprune.training.batch_norm import use_global_batch_norm
from cpprune.training.ema import Average
from cpprune.training.optim import build_optimizer
from cpprune.training.optimizer_state import read_moments, write_moments
from shards.errors import InputError

# Before a step is captured: the optimizer makes its state, kernels are compiled. DistributedDataParallel
# measures its first ten.
PLAIN_STEPS, PLAIN_STEPS_OF_SEVERAL = 3, 11


class Forward(nn.Module):
    """What Accelerate wraps: the network in a shell of its own.

    Wrapping patches and replaces attributes of the module that it is given. The network inside
    stays untouched, so it can be cut, copied and saved, and the next shell is wrapped as if it were
    the first.
    """

    def __init__(self, network: nn.Module, compiled: str, precision: str) -> None:
        super().__init__()
        self.network = network
        self.call = network if compiled == "off" else _compile(network)
        self.dtype = process_group.AUTOCAST[precision]

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """x_BCFT → logits [B, K]."""
        with torch.autocast(x_BCFT.device.type, self.dtype, enabled=self.dtype is not None):
            logits: Tensor = self.call(x_BCFT)
            return logits


def _compile(network: nn.Module) -> Any:
    """Compile so that a run that goes on computes the same bits."""
    from torch._inductor import config as inductor

    # Without this, how a sum is split is decided by what was faster when it was tried.
    if hasattr(inductor, "deterministic"):
        inductor.deterministic = os.environ.get("TORCHINDUCTOR_DETERMINISTIC") != "0"
    # Code for any batch size would be made from the second one on, whichever of them comes first.
    return torch.compile(network, dynamic=False)


@dataclass(frozen=True)
class Stepped:
    """What came of a step, on the device.

    Attributes:
        loss_sum: sum of the losses of this rank's clips; 0 if the step was skipped.
        skipped: whether it was, because the gradient was not finite.
    """

    loss_sum: Tensor
    skipped: Tensor


class Stepper:
    """The network as Accelerate wraps it, its optimizer, and how a step is taken.

    Nothing can be trained before `wrap`.

    Args:
        config: of the run.
        model: front end and network, unwrapped.
        labels: of every row of the dataset's index.
        accelerator: from `distributed.start`.

    Raises:
        InputError: the launcher's DeepSpeed cannot do what the configuration asks for.

    Attributes:
        average: of the weights, or None.
        penalty: what the loss has beside the cross-entropy, or None; the caller sets it.
    """

    def __init__(
        self, config: RunConfig, model: Model, labels: NDArray[np.int64], accelerator: Any
    ) -> None:
        if zero.asked_for() and config.train.compile == "graph":
            raise InputError(
                "train.compile=graph: DeepSpeed's steps cannot be captured; set train.compile=auto, or "
                "launch with launch/accelerate/multi_gpu.yaml"
            )
        self.config = config
        self.model = model
        self.labels = labels
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        # DeepSpeed lays weights out in its own way, and takes none that lie otherwise.
        self.layout = torch.contiguous_format if zero.asked_for() else torch.channels_last
        self.average: Average | None = None
        self.penalty: Penalty | None = None
        self.run = capture.Captured(self._step, self.device, None, 0)

    def close(self) -> None:
        """Let go of captured steps, before the process group is left."""
        self.run.forget()

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapper."""
        inner: torch.optim.Optimizer = self.optimizer.optimizer
        return inner

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved: the averaged one, if there is one."""
        return self.model.network if self.average is None else self.average.network

    def place(self, network: nn.Module) -> None:
        """Bring a network to the device in the order in memory that all have."""
        network.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]

    def wrap(self, moments: Mapping[str, Tensor]) -> None:
        """Make an optimizer for the network as it is now, and let Accelerate wrap both.

        Args:
            moments: the optimizer's state, from `moments`; empty for a fresh one.

        Raises:
            InputError: nothing in the network can be trained.
        """
        network = self.model.network
        self.place(self.model)
        if self.config.train.global_batch_norm:
            use_global_batch_norm(network)
        if self.average is None and self.config.train.ema_decay:
            self.average = Average(network, self.config.train.ema_decay)
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not parameters:
            raise InputError("every parameter of the network is frozen: there is nothing to train")
        train, deepspeed = self.config.train, zero.asked_for()
        how = train.compile if self.device.type == "cuda" else "off"
        if how != "off":
            torch.compiler.reset()  # or code would be made for the first few cuts only
        shell = Forward(network, how, train.precision)
        self.features = self.model.features
        if how != "off":
            self.features = self.features.compiled()
        record = capture.recorder(train.compile, self.device)
        optimizer = build_optimizer(
            self.config.optim, parameters, fused=not deepspeed, capturable=record is not None
        )
        self.close()
        self.accelerator.free_memory()
        with redirect_stdout(sys.stderr):  # DeepSpeed prints
            self.wrapped, self.optimizer = self.accelerator.prepare(shell, optimizer)
        plain_steps = PLAIN_STEPS if process_group.world_size() == 1 else PLAIN_STEPS_OF_SEVERAL
        self.run = capture.Captured(self._step, self.device, record, plain_steps)
        buffers = list(network.buffers())
        dtypes = dict.fromkeys(buffer.dtype for buffer in buffers)
        self.buffers = [[b for b in buffers if b.dtype == dtype] for dtype in dtypes]
        if isinstance(self.wrapped, DistributedDataParallel):
            # Batch statistics are global, or shared when they are needed: not at every step.
            self.wrapped.broadcast_buffers = False
        write_moments(network, self.inner_optimizer, moments)

    def moments(self) -> dict[str, Tensor]:
        """Return the optimizer's state by parameter; every rank has to call it."""
        return read_moments(self.model.network, self.inner_optimizer)

    def cut(self, make: Callable[[], Plan], carry_state: bool) -> Cut:
        """Prune the network on all ranks, with its average and its optimizer's state.

        Args:
            make: makes the plan; called on rank 0 only.
            carry_state: whether the optimizer keeps the state of what stays.
        """
        moments = self.moments() if carry_state else {}
        shape = self.model.input_shape
        cut = prune_on_all_ranks(self.model.network, shape, make, moments, self.device)
        if self.average is not None:
            apply_plan(self.average.network, shape, cut.plan)
            self.place(self.average.network)  # cut tensors lie in memory in another order
        self.wrap(cut.moments)
        return cut

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every parameter."""
        for group in self.inner_optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)  # a captured step reads it there
            else:
                group["lr"] = lr

    def step(self, epoch: int, batch: Batch, number: int) -> Stepped:
        """Take one optimizer step on a global batch.

        A step whose gradient is not finite changes nothing, on no rank. (Under DeepSpeed it cannot be
        held back: the run has to end.)

        Args:
            epoch: from 0.
            batch: this rank's part of it.
            number: of this step in the run, from 0.

        Returns:
            What came of it, on the device. Nothing here asks for it.
        """
        return Stepped(*self.run(self.inputs(epoch, batch, number), len(batch.ids)))

    def inputs(self, epoch: int, batch: Batch, number: int) -> dict[str, Tensor]:
        """Return all that differs from step to step, on the host but for clips that are not."""
        spec = self.model.features.spec
        config, total = self.config, len(batch.ids)
        draws = sample(config.augment, spec, config.seed, epoch, batch.number, total)
        rows = slice(batch.start, batch.stop)
        inputs = {
            "clips": batch.clips,
            "labels": torch.from_numpy(self.labels[batch.ids[rows]]),
            "epoch": torch.tensor(float(epoch), dtype=torch.float64),
            "number": torch.tensor(float(number), dtype=torch.float64),
            **draws.of_rows(rows),
        }
        if draws.mixup is not None:
            partners = batch.ids[draws.mixup[1][rows]]
            inputs["partner_labels"] = torch.from_numpy(self.labels[partners])
        return inputs

    def _step(self, inputs: Mapping[str, Tensor], total: int) -> tuple[Tensor, Tensor]:
        """Take a step on what `inputs` returned, on the device; see `capture.Captured`.

        Returns:
            The sum of the losses of this rank's clips, and whether the step was skipped.
        """
        train = self.config.train
        x = augmented(
            self.features,
            inputs["clips"],
            inputs,
            self.config.augment,
            lambda own: collectives.gather_rows(own, total),
        )
        targets = _targets(inputs)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        buffers_before = [_joined(group) for group in self.buffers]
        # The same number of micro-batches on every rank, and none that is empty on all of them.
        most = -(-total // process_group.world_size())
        size = min(train.micro_batch_size or most, most)
        for begin in range(0, most, size):
            some = slice(begin, begin + size)
            last = begin + size >= most
            self.accelerator.sync_gradients = last  # DeepSpeed steps by this
            waits = isinstance(self.wrapped, DistributedDataParallel) and not last
            with self.wrapped.no_sync() if waits else nullcontext():
                logits = self.wrapped(x[some].contiguous(memory_format=self.layout))
                losses = torch.stack(
                    [
                        weight[some]
                        * functional.cross_entropy(logits.float(), label[some], reduction="none")
                        for label, weight in targets
                    ]
                ).sum(0)
                # Ranks' gradients are averaged: the mean over the global batch is what is wanted.
                loss = losses.sum() * (process_group.world_size() / total)
                if last and self.penalty is not None:
                    loss = loss + self.penalty(inputs["epoch"])
                self.accelerator.backward(loss)
            loss_sum += losses.detach().sum()
        skipped = self._update(loss_sum, buffers_before)
        if self.average is not None:
            self.average.follow(self.model.network, inputs["number"])
        return torch.where(skipped, 0.0, loss_sum), skipped

    def _update(self, loss_sum: Tensor, buffers_before: list[Tensor]) -> Tensor:
        """Move the weights, unless the gradient is not finite; return whether it is not."""
        clip_norm = self.config.train.clip_norm
        if clip_norm:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), clip_norm)
        if zero.asked_for() or self.accelerator.scaler is not None:
            # A scaler holds the step back itself, also when only its scale was too large: no fault.
            skipped = ~torch.isfinite(loss_sum)
        else:
            gradients = [p.grad for p in self.wrapped.parameters() if p.grad is not None]
            skipped = ~torch.isfinite(torch.nn.utils.get_total_norm(gradients))
            # What fused optimizers ask torch's own gradient scaler.
            vars(self.inner_optimizer).update(grad_scale=None, found_inf=skipped.float())
        self.optimizer.step()
        self.optimizer.zero_grad()
        for group, before in zip(self.buffers, buffers_before, strict=True):
            kept = torch.where(skipped, before, _joined(group))
            parts = torch.split(kept, [b.numel() for b in group])
            torch._foreach_copy_(
                group, [part.view_as(b) for part, b in zip(parts, group, strict=True)]
            )
        return skipped


def _joined(group: list[Tensor]) -> Tensor:
    # One kernel, where a copy of each would be one apiece.
    return torch.cat([b.reshape(-1) for b in group])


def _targets(inputs: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the labels of this rank's clips and their weights; two of each under mixup."""
    own = inputs["labels"]
    if "mixup" not in inputs:
        return [(own, torch.ones(len(own), device=own.device))]
    lam = inputs["mixup"]
    return [(own, lam), (inputs["partner_labels"], 1 - lam)]
