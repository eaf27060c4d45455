"""The network as it is trained: wrapped by Accelerate, compiled, captured, averaged, and its optimizer.

Only this module knows of DistributedDataParallel, DeepSpeed, compilation, CUDA graphs and gradient
scaling.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cpprune.config import RunConfig
from cpprune.deps.accelerate import set_sync_gradients
from cpprune.deps.torch import (
    copy_each_,
    make_inductor_deterministic,
    skip_next_step_if,
    stop_buffer_broadcast,
)
from cpprune.distributed import collectives, deepspeed, process_group
from cpprune.models.artifact import Model
from cpprune.models.resize import fit
from cpprune.pruning.pruner import Cut
from cpprune.pruning.surgery import apply_plan
from cpprune.runs.checkpoint import Tensors
from cpprune.training import cuda_graph
from cpprune.training.batch_norm import use_global_batch_norm
from cpprune.training.ema import Average
from cpprune.training.optim import build_optimizer
from cpprune.training.optimizer_state import read_moments, write_moments
from shards.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cpprune.runs.checkpoint import Saved

# Steps before one is captured: the optimizer allocates its state, kernels are compiled.
# DistributedDataParallel measures its first ten.
PLAIN_STEPS, PLAIN_STEPS_OF_SEVERAL = 3, 11


class Engine:
    """The network as it is trained, and its optimizer.

    A step calls, in this order: `micro_batches`, for each of them `forward` and `backward`, then
    `update`.

    Args:
        config: of the run.
        model: front end and network, unwrapped; the network is moved to the device.
        accelerator: from `process_group.joined`.
        saved: the checkpoint to restore, or None.

    Raises:
        UserError: the configuration asks for what the launcher's DeepSpeed cannot do, or nothing in
            the network can be trained.

    Attributes:
        ema: the moving average of the weights, or None.
        features: the front end, compiled if the network is.
    """

    def __init__(
        self, config: RunConfig, model: Model, accelerator: Accelerator, saved: Saved | None = None
    ) -> None:
        if deepspeed.is_requested() and config.train.compile == "graph":
            raise UserError(
                "train.compile=graph: DeepSpeed's steps cannot be captured; set train.compile=auto, or "
                "launch with launch/accelerate/multi_gpu.yaml"
            )
        self.config = config
        self.model = model
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        # DeepSpeed lays weights out in its own way, and takes none that lie otherwise.
        contiguous = deepspeed.is_requested()
        self.layout = torch.contiguous_format if contiguous else torch.channels_last
        self.ema: Average | None = None
        self._captured: list[cuda_graph.Captured] = []
        if saved is None:
            self._prepare({})
            return
        fit(model.network, saved.tensors.network)
        model.network.load_state_dict(saved.tensors.network)
        self._prepare(saved.tensors.optimizer)
        if self.ema is not None:
            self.ema.network.load_state_dict(saved.tensors.average)
        if saved.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved.scaler)

    def close(self) -> None:
        """Release captured steps: NCCL does not leave a group that a CUDA graph still refers to."""
        for captured in self._captured:
            captured.forget()

    # --- one step -------------------------------------------------------------------------------------

    def micro_batches(self, total: int) -> Iterator[tuple[slice, bool]]:
        """Yield this rank's rows of each micro-batch, and whether it is the last.

        Gradients are exchanged in the last one. Every rank has the same number of micro-batches, none
        of which is empty on all ranks.

        Args:
            total: clips in the global batch.
        """
        most = -(-total // process_group.world_size())
        size = min(self.config.train.micro_batch_size or most, most)
        for begin in range(0, most, size):
            last = begin + size >= most
            set_sync_gradients(self.accelerator, last)
            waits = isinstance(self.wrapped, DistributedDataParallel) and not last
            with self.wrapped.no_sync() if waits else nullcontext():
                yield slice(begin, begin + size), last

    def forward(self, x_bCFN: Tensor) -> Tensor:
        """x_bCFN → logits [b, K] in float32."""
        logits: Tensor = self.wrapped(x_bCFN.contiguous(memory_format=self.layout))
        return logits.float()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, a scalar; ranks' gradients are averaged."""
        self.accelerator.backward(loss)

    def update(self, loss_sum: Tensor, buffers_before: list[Tensor], step: Tensor) -> Tensor:
        """Clip the gradient and update weights and moving average.

        A step whose gradient is not finite changes nothing, on no rank. (DeepSpeed cannot hold it back:
        the run has to end.)

        Args:
            loss_sum: of this rank's clips.
            buffers_before: from `buffers`, before the step.
            step: optimizer steps so far, a scalar on the device.

        Returns:
            Whether the step was skipped, a scalar on the device.
        """
        clip_norm = self.config.train.clip_norm
        if clip_norm:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), clip_norm)
        if deepspeed.is_requested() or self.accelerator.scaler is not None:
            # A gradient scaler skips steps itself, also when only its scale was too large.
            skipped = ~torch.isfinite(loss_sum)
        else:
            gradients = [p.grad for p in self.wrapped.parameters() if p.grad is not None]
            skipped = ~torch.isfinite(torch.nn.utils.get_total_norm(gradients))
            skip_next_step_if(self.optimizer, skipped)
        self._accelerated_optimizer.step()
        self._accelerated_optimizer.zero_grad()
        for group, before in zip(self._buffers, buffers_before, strict=True):
            kept = torch.where(skipped, before, _joined(group))
            parts = torch.split(kept, [b.numel() for b in group])
            copy_each_(group, [part.view_as(b) for part, b in zip(parts, group, strict=True)])
        if self.ema is not None:
            self.ema.follow(self.model.network, step)
        return skipped

    def buffers(self) -> list[Tensor]:
        """Return a copy of all buffers, one flat tensor for each dtype."""
        return [_joined(group) for group in self._buffers]

    def capture(self, run: cuda_graph.Run) -> cuda_graph.Captured:
        """Return a function that is replayed as a CUDA graph, if the configuration asks for that."""
        captured = cuda_graph.Captured(run, self.device, self._recorder, self._plain_steps)
        self._captured.append(captured)
        return captured

    # --- between steps --------------------------------------------------------------------------------

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved: the averaged one, if there is one."""
        return self.model.network if self.ema is None else self.ema.network

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapper."""
        inner: torch.optim.Optimizer = self._accelerated_optimizer.optimizer
        return inner

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every parameter."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)  # a captured step reads it there
            else:
                group["lr"] = lr

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer's state as {"parameter/key": tensor}; every rank has to call it."""
        return read_moments(self.model.network, self.optimizer)

    def adopt(self, cut: Cut) -> None:
        """Go on with the pruned network: prune its moving average alike, and wrap the network anew."""
        if self.ema is not None:
            apply_plan(self.ema.network, self.model.input_shape, cut.plan)
            self._place(self.ema.network)  # pruned tensors lie in memory in another order
        self._prepare(cut.optimizer_state)

    def share_buffers(self) -> None:
        """Give every rank rank 0's running statistics."""
        collectives.broadcast_buffers(self.model.network)
        if self.ema is not None:
            collectives.broadcast_buffers(self.ema.network)

    def tensors(self) -> Tensors:
        """Return what a checkpoint stores; every rank has to call it."""
        return Tensors(
            network=self.model.network.state_dict(),
            optimizer=self.optimizer_state(),
            average=self.ema.network.state_dict() if self.ema is not None else {},
        )

    def scaler_state(self) -> dict[str, Any] | None:
        """Return the state of the gradient scaler, if there is one."""
        scaler = self.accelerator.scaler
        return scaler.state_dict() if scaler is not None else None

    def _place(self, network: nn.Module) -> None:
        network.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]

    def _prepare(self, optimizer_state: Mapping[str, Tensor]) -> None:
        """Make an optimizer for the network as it is now, and let Accelerate wrap both."""
        network, train = self.model.network, self.config.train
        self._place(self.model)
        if train.global_batch_norm:
            use_global_batch_norm(network)
        if self.ema is None and train.ema_decay:
            self.ema = Average(network, train.ema_decay)
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not parameters:
            raise UserError("every parameter of the network is frozen: there is nothing to train")
        how = train.compile if self.device.type == "cuda" else "off"
        if how != "off":
            torch.compiler.reset()  # or code would be made for the first few prunings only
        self.features = self.model.features if how == "off" else self.model.features.compiled()
        shell = Forward(network, how, train.precision)
        self._recorder = cuda_graph.recorder(train.compile, self.device)
        optimizer = build_optimizer(
            self.config.optim,
            parameters,
            fused=not deepspeed.is_requested(),
            capturable=self._recorder is not None,
        )
        self.close()
        self.accelerator.free_memory()
        with redirect_stdout(sys.stderr):  # DeepSpeed prints
            self.wrapped, self._accelerated_optimizer = self.accelerator.prepare(shell, optimizer)
        alone = process_group.world_size() == 1
        self._plain_steps = PLAIN_STEPS if alone else PLAIN_STEPS_OF_SEVERAL
        for captured in self._captured:
            captured.record = self._recorder
        buffers = list(network.buffers())
        dtypes = dict.fromkeys(buffer.dtype for buffer in buffers)
        self._buffers = [[b for b in buffers if b.dtype == dtype] for dtype in dtypes]
        if isinstance(self.wrapped, DistributedDataParallel):
            # Batch statistics are global, or shared when they are needed: not at every step.
            stop_buffer_broadcast(self.wrapped)
        write_moments(network, self.optimizer, optimizer_state)


class Forward(nn.Module):
    """The module that Accelerate wraps: the network under autocast.

    Wrapping patches and replaces attributes of the module that it is given. The network inside stays
    untouched, so that it can be pruned, copied and saved, and wrapped again in a new shell.
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
    """Compile the network such that a resumed run computes the same bits."""
    make_inductor_deterministic()
    # Dynamic shapes would be compiled from the second batch size on, whichever comes first.
    return torch.compile(network, dynamic=False)


def _joined(group: list[Tensor]) -> Tensor:
    # One kernel, where a copy of each would be one apiece.
    return torch.cat([b.reshape(-1) for b in group])
