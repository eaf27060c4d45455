"""The network as it is trained: wrapped by Accelerate, compiled, captured, averaged, and its optimizer.

Only this module knows of DistributedDataParallel, DeepSpeed, compilation, CUDA graphs and gradient
scaling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cpprune.config import RunConfig
from cpprune.deps.accelerate import configure_ddp, set_sync_gradients
from cpprune.deps.torch import (
    copy_each_,
    inductor_cache,
    make_inductor_deterministic,
    skip_next_step_if,
    stop_buffer_broadcast,
)
from cpprune.distributed import collectives, deepspeed, process_group
from cpprune.models.artifact import Model
from cpprune.models.fake_quantize import FakeQuantizer
from cpprune.models.quantized import is_quantized, quantize
from cpprune.pruning.pruner import Cut
from cpprune.pruning.surgery import apply_plan
from cpprune.runs.checkpoint import Tensors
from cpprune.training import cuda_graph
from cpprune.training.at_once import AtOnce
from cpprune.training.batch_norm import use_global_batch_norm
from cpprune.training.ema import Average
from cpprune.training.optim import FACTOR, build_optimizer
from cpprune.training.optimizer_state import read_moments, write_moments
from cpprune.training.trial import Traits
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
        model: front end and network, unwrapped, as in the checkpoint if there is one; the network is
            moved to the device.
        accelerator: from `process_group.joined`.
        traits: how the network has to be trained.
        saved: the checkpoint to restore, or None.

    Raises:
        UserError: the configuration asks for what the launcher's DeepSpeed or the network cannot do,
            or nothing in the network can be trained.

    Attributes:
        ema: the moving average of the weights, or None.
        features: the front end, compiled if the network is.
        compiles: whether Inductor compiles network and front end.
        captures: whether steps are captured as CUDA graphs, on a GPU.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        accelerator: Accelerator,
        traits: Traits,
        saved: Saved | None = None,
    ) -> None:
        if deepspeed.is_requested() and config.train.captures:
            raise UserError(
                f"train.compile={config.train.compile}: DeepSpeed's steps cannot be captured; set "
                "train.compile=auto, or launch with launch/accelerate/multi_gpu.yaml"
            )
        if config.train.captures and traits.host and accelerator.device.type == "cuda":
            raise UserError(
                f"train.compile={config.train.compile}: the network {traits.host}, which a CUDA graph "
                "does not replay; set train.compile=auto"
            )
        self.config = config
        self.model = model
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.layout = traits.layout
        self.compiles = self.device.type == "cuda" and config.train.compile in ("inductor", "graph")
        self.captures = config.train.captures or (
            config.train.compile == "auto"
            and config.train.precision != "fp16"
            and config.features.backend != "dali"
            and process_group.world_size() == 1
            and not deepspeed.is_requested()
            and not traits.host
        )
        configure_ddp(accelerator, bool(traits.unused))
        self.ema: Average | None = None
        self._captured: list[cuda_graph.Captured] = []
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.current_stream(self.device) if cuda else None
        self._prepare(saved.tensors.optimizer if saved else {})
        if saved is None:
            return
        if self.ema is not None:
            self.ema.network.load_state_dict(saved.tensors.average)
        if saved.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved.scaler)

    def close(self) -> None:
        """Release captured steps and return to the stream of the caller."""
        self.forget_captured()
        if self._stream is not None:
            cuda_graph.return_to(self._stream)

    def forget_captured(self) -> None:
        """Release captured steps: NCCL does not leave a group that a CUDA graph still refers to."""
        for captured in self._captured:
            captured.forget()

    def cache(self, folder: Path) -> AbstractContextManager[None]:
        """Return a context in which compiled code is kept in a folder."""
        return inductor_cache(folder) if self.compiles else nullcontext()

    # --- one step -------------------------------------------------------------------------------------

    def micro_batches(self, total: int) -> Iterator[tuple[slice, bool]]:
        """Yield this rank's rows of each micro-batch, and whether it is the last.

        Gradients are exchanged in the last one; see `TrainConfig.micro_batches`.

        Args:
            total: clips in the global batch.
        """
        all_rows = self.config.train.micro_batches(total, process_group.world_size())
        for rows in all_rows:
            last = rows is all_rows[-1]
            set_sync_gradients(self.accelerator, last)
            waits = isinstance(self.wrapped, DistributedDataParallel) and not last
            with self.wrapped.no_sync() if waits else nullcontext():
                yield rows, last

    def forward(self, x_bCFN: Tensor) -> Tensor:
        """x_bCFN → logits [b, K] in float32."""
        x_bCFN = x_bCFN.contiguous(memory_format=self.layout)
        if x_bCFN.is_cuda and x_bCFN.shape[1] == 1 and self.layout == torch.channels_last:
            # One channel lies alike in both layouts, and cuDNN takes it for the other one.
            _, _, high, wide = x_bCFN.shape
            x_bCFN = x_bCFN.as_strided(x_bCFN.shape, (high * wide, 1, wide, 1))
        logits: Tensor = self.wrapped(x_bCFN)
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
            norm = torch.nn.utils.get_total_norm(gradients)
            skipped = norm - norm != 0  # `~isfinite` in two kernels instead of five
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
        """Set the learning rate, times the factor of each group of parameters."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * group[FACTOR])  # a captured step reads it there
            else:
                group["lr"] = lr * group[FACTOR]

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer's state as {"parameter/key": tensor}; every rank has to call it."""
        return read_moments(self.model.network, self.optimizer)

    def adopt(self, cut: Cut) -> None:
        """Go on with the pruned network: prune its moving average alike, and wrap the network anew."""
        if self.ema is not None:
            apply_plan(self.ema.network, self.model.input_shape, cut.plan)
            self._place(self.ema.network)  # pruned tensors lie in memory in another order
        self._prepare(cut.optimizer_state)

    def quantize(self, keep_float: Sequence[str]) -> FakeQuantizer:
        """Go on with the network fake-quantised, and its moving average alike; wrap it anew.

        Args:
            keep_float: see `cpprune.models.quantized.quantize`.
        """
        state = self.optimizer_state()
        if self.ema is not None:
            quantize(self.ema.network, self.model.input_shape, keep_float)
        fake = quantize(self.model.network, self.model.input_shape, keep_float)
        self._prepare(state)
        return fake

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

    def scaler_state(self) -> dict[str, object] | None:
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
        fresh = self.model.fresh
        kept = [p for name, p in network.named_parameters() if fresh and name not in fresh]
        cuda, compiled, captures = self.device.type == "cuda", self.compiles, self.captures
        if is_quantized(network):
            network.fake_quantize.largest = collectives.all_reduce_max
            compiled = captures = False
        if compiled:
            torch.compiler.reset()  # or code would be made for the first few prunings only
        self.features = self.model.features.compiled() if compiled else self.model.features
        shell = Forward(network, train.precision, compiled, at_once=cuda and not compiled)
        self._recorder = cuda_graph.recorder(self.device) if captures else None
        optimizer = build_optimizer(
            self.config.optim,
            parameters,
            fused=not deepspeed.is_requested(),
            capturable=self._recorder is not None,
            kept=kept,
        )
        self.forget_captured()
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

    def __init__(
        self, network: nn.Module, precision: str, compiled: bool = False, at_once: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.dtype = process_group.AUTOCAST[precision]
        plain = AtOnce(network, self.dtype) if at_once else network
        self.call = _compile(network) if compiled else plain

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """x_BCFT → logits [B, K]."""
        with torch.autocast(x_BCFT.device.type, self.dtype, enabled=self.dtype is not None):
            logits: Tensor = self.call(x_BCFT)
            return logits


def _compile(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile the network such that a resumed run computes the same bits."""
    make_inductor_deterministic()
    # Dynamic shapes would be compiled from the second batch size on, whichever comes first.
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False)
    return compiled


def _joined(group: list[Tensor]) -> Tensor:
    # One kernel, where a copy of each would be one apiece.
    return torch.cat([b.reshape(-1) for b in group])
