"""Settings of the optimizer and of the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cpprune.settings.choices import check_choices

BITS = 8  # that quantised models are run with


@dataclass(kw_only=True)
class OptimConfig:
    """Optimizer and learning rate."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """adam (coupled L2), adamw (decoupled weight decay) or sgd (momentum 0.9)"""
    lr: float = 1e-3
    """peak learning rate, before the schedule's factor"""
    kept_lr_factor: float = 1.0
    """factor of the learning rate of what init_head=new keeps, from 0 (frozen) to 1"""
    weight_decay: float = 3e-3
    """weight decay of all parameters"""
    schedule: Literal["lambda", "reduce_on_plateau", "cosine", "constant"] = "lambda"
    """learning-rate schedule: lambda (warm-up, hold, linear decay), reduce_on_plateau, cosine or
    constant"""
    warmup_epochs: int = 6
    """lambda and cosine: epochs of exponential warm-up"""
    warmup_steps: int | None = None
    """steps of linear warm-up, instead of warmup_epochs. The schedule then advances from step to step:
    with cosine and last_factor=0 it is that of transformers' get_cosine_schedule_with_warmup (default:
    from epoch to epoch)"""
    hold_epochs: int = 20
    """lambda: epoch until which the learning rate stays at its peak"""
    rampdown_epochs: int = 10
    """lambda: epochs of linear decay to last_factor"""
    last_factor: float = 1e-3
    """lambda and cosine: factor of the learning rate at the end of its decay, from 0 to 1"""
    plateau_factor: float = 0.1
    """reduce_on_plateau: factor of each reduction, between 0 and 1"""
    plateau_patience: int = 10
    """reduce_on_plateau: epochs without a better validation loss before a reduction"""

    def __post_init__(self) -> None:
        check_choices(self, "optim")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"optim.lr={self.lr}: must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"optim.weight_decay={self.weight_decay}: must not be negative")
        for name in ("warmup_epochs", "hold_epochs", "rampdown_epochs", "plateau_patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name}={getattr(self, name)}: must not be negative")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps={self.warmup_steps}: must not be negative")
        if not 0 <= self.kept_lr_factor <= 1:
            raise ValueError(f"optim.kept_lr_factor={self.kept_lr_factor}: must be from 0 to 1")
        if not 0 <= self.last_factor <= 1:
            raise ValueError(f"optim.last_factor={self.last_factor}: must be from 0 to 1")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"optim.plateau_factor={self.plateau_factor}: must be in (0, 1)")


@dataclass(kw_only=True)
class TrainConfig:
    """The training loop."""

    epochs: int = 50
    """number of epochs"""
    batch_size: int = 256
    """clips in a global batch, over all processes"""
    drop_last: bool = False
    """leave out the last batch of an epoch if it is smaller than the others"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """mixed precision: no (float32), bf16 or fp16"""
    micro_batch_size: int = 0
    """most clips that a process takes through the network at once, to save memory: it accumulates
    gradients over as many micro-batches as its share of the batch needs, and batch statistics are
    those of a micro-batch over all processes; 0 is no limit"""
    clip_norm: float = 0.0
    """largest norm of the gradient, which is scaled down to it; 0 is off"""
    monitor: Literal["macro_accuracy", "log_loss"] = "macro_accuracy"
    """validation metric that selects the best model: macro_accuracy or log_loss"""
    ema_decay: float = 0.0
    """decay of an exponential moving average of the weights, which is then evaluated and saved, such
    as 0.999; 0 is off"""
    global_batch_norm: bool = True
    """batch statistics over all processes, so that their number does not change the result"""
    checkpoint_steps: int = 0
    """steps between checkpoints, beside the one after each epoch; 0 is none"""
    keep_checkpoints: int = 2
    """number of latest checkpoints to keep, beside the best model's"""
    max_skipped: int = 10
    """steps that may be skipped because their gradient is not finite, before the run ends"""
    time_limit_minutes: float = 0.0
    """minutes after which the run saves a checkpoint and stops; the same command resumes it; 0 is no
    limit"""
    compile: Literal["auto", "off", "capture", "inductor", "graph"] = "auto"
    """what is compiled on a GPU, anew after each pruning step: capture replays the whole step, from
    clips to updated weights, as a CUDA graph; inductor compiles network and front end (torch.compile);
    graph does both; off neither; auto captures if one process trains and the network can be captured"""

    def micro_batches(self, total: int, processes: int) -> list[slice]:
        """Return the rows that a process takes through the network at once, of its part of a batch.

        Every process has the same number of micro-batches, none of which is empty on all of them.

        Args:
            total: clips in the global batch.
            processes: that share it.
        """
        most = -(-total // processes)
        size = min(self.micro_batch_size or most, most)
        return [slice(begin, begin + size) for begin in range(0, most, size)]

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1")
        limits = ("micro_batch_size", "checkpoint_steps", "max_skipped", "time_limit_minutes")
        for name in ("clip_norm", *limits):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)}: must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay={self.ema_decay}: must be at least 0 and below 1")
        check_choices(self, "train")
        if self.captures and self.precision == "fp16":
            raise ValueError(
                f"train.compile={self.compile}: a step in fp16 waits for its loss scale and cannot be "
                "captured; set train.precision=bf16 or train.compile=auto"
            )

    @property
    def captures(self) -> bool:
        """Return whether steps have to be captured as CUDA graphs."""
        return self.compile in ("capture", "graph")


@dataclass(kw_only=True)
class QuantizeConfig:
    """Quantisation-aware training: the network learns what its int8 export computes."""

    start_epoch: int | None = None
    """epoch, from 0, at whose beginning weights and activations begin to be rounded as in int8, batch
    normalisation folded; after the last pruning step, and from 1 on without init (default: never)"""
    bits: int = BITS
    """bits of weights and activations: 8"""
    keep_float: list[str] = field(default_factory=lambda: ["first"])
    """names of layers that stay in float32; also first and last; [] is none"""

    def __post_init__(self) -> None:
        if self.start_epoch is not None and self.start_epoch < 0:
            raise ValueError(f"quantize.start_epoch={self.start_epoch}: must not be negative")
        if self.bits != BITS:
            raise ValueError(
                f"quantize.bits={self.bits}: must be {BITS}, which exported models are run with"
            )
