"""Optimizers by name, and learning-rate schedules as pure functions of what has been."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from cpprune.training.config import OptimConfig

FACTOR = "lr_factor"  # of a group of the optimizer's parameters


def build_optimizer(
    config: OptimConfig,
    parameters: Iterable[nn.Parameter],
    fused: bool = True,
    capturable: bool = False,
    kept: Collection[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return the optimizer named in the config over these parameters.

    Args:
        config: which, and its numbers.
        parameters: all that it moves.
        fused: one kernel for all of them, which can skip a step without the host looking.
        capturable: keep the learning rate beside the parameters, where a CUDA graph can read it.
        kept: those of them whose learning rate has the factor `kept_lr_factor`.
    """
    parameters = list(parameters)
    groups: list[dict[str, object]] = []
    for part, factor in _parts(parameters, kept, config.kept_lr_factor):
        lr = config.lr * factor
        own = torch.tensor(lr, device=parameters[0].device) if capturable else lr
        groups.append({"params": part, FACTOR: factor, "lr": own})
    if config.name == "sgd":
        sgd = torch.optim.SGD(groups, momentum=0.9, weight_decay=config.weight_decay, fused=fused)
        for parameter in parameters if fused else []:
            # Fused, a first step that is skipped would leave a momentum of whatever lay there.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=config.weight_decay, fused=fused, capturable=capturable)


def _parts(
    parameters: Sequence[nn.Parameter], kept: Collection[nn.Parameter], factor: float
) -> list[tuple[list[nn.Parameter], float]]:
    """Return parameters and their factor: one part, or two if some have another factor."""
    slow = set(kept) if factor != 1 else set()
    parts = [p for p in parameters if p not in slow], [p for p in parameters if p in slow]
    return [(part, own) for part, own in zip(parts, (1.0, factor), strict=True) if part]


def warmup(epoch: float, epochs: int) -> float:
    """Return exp(−5·(1 − clip(epoch, 0.5, w)/w)²), the exponential warm-up over w epochs.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", 2017.
    """
    if epoch >= epochs:
        return 1.0
    phase = 1 - min(max(epoch, 0.5), epochs) / epochs
    return math.exp(-5 * phase * phase)


def lambda_factor(config: OptimConfig, epoch: float) -> float:
    """Warm-up, full until `hold_epochs`, linear over `rampdown_epochs`, then `last_factor`."""
    if epoch < config.warmup_epochs:
        return warmup(epoch, config.warmup_epochs)
    if epoch <= config.hold_epochs:
        return 1.0
    if epoch - config.hold_epochs >= config.rampdown_epochs:
        return config.last_factor
    part = (epoch - config.hold_epochs) / config.rampdown_epochs
    return 1 - (1 - config.last_factor) * part


def cosine_factor(config: OptimConfig, epoch: int, epochs: int) -> float:
    """Warm-up, then half a cosine from 1 at its end to `last_factor` at the last epoch."""
    if epoch < config.warmup_epochs:
        return warmup(epoch, config.warmup_epochs)
    return half_cosine(config, epoch - config.warmup_epochs, epochs - 1 - config.warmup_epochs)


def half_cosine(config: OptimConfig, position: int, length: int) -> float:
    """Return half a cosine from 1 at position 0 to `last_factor` at `length` (in epochs or steps)."""
    part = min(position / max(1, length), 1)
    return config.last_factor + (1 - config.last_factor) * (1 + math.cos(math.pi * part)) / 2


def plateau_factor(config: OptimConfig, val_losses: Sequence[float | None]) -> float:
    """Return the factor after these validation losses, one an epoch.

    As torch.optim.lr_scheduler.ReduceLROnPlateau(mode="min", threshold=1e-4), but a function of the
    history, so there is no state to lose.
    """
    factor, best, waited = 1.0, math.inf, 0
    for loss in val_losses:
        if loss is not None and loss < best * (1 - 1e-4):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > config.plateau_patience:
            factor, waited = factor * config.plateau_factor, 0
    return factor


@dataclass(frozen=True)
class Span:
    """The epochs that a learning-rate schedule extends over: pruning may start a new one.

    Attributes:
        first: its first epoch.
        end: one past its last.
        steps: in an epoch.
    """

    first: int
    end: int
    steps: int


def lr_factor(
    config: OptimConfig, span: Span, epoch: int, step: int, val_losses: Sequence[float | None]
) -> float:
    """Return what the learning rate is multiplied with in a step.

    Args:
        config: which schedule, and its numbers.
        span: what the schedule extends over.
        epoch: of the run, from 0.
        step: of this epoch, from 0.
        val_losses: validation losses of the run's epochs before; None where it was not finite.
    """
    since, losses = epoch - span.first, val_losses[span.first :]
    if config.warmup_steps is None:
        match config.schedule:
            case "lambda":
                return lambda_factor(config, since)
            case "cosine":
                return cosine_factor(config, since, span.end - span.first)
            case "reduce_on_plateau":
                return plateau_factor(config, losses)
            case _:
                return 1.0
    done = since * span.steps + step
    # As transformers' get_cosine_schedule_with_warmup: 0 in the first step, 1 after `warmup_steps`.
    rise = min(done / config.warmup_steps, 1) if config.warmup_steps else 1.0
    match config.schedule:
        case "lambda":
            return rise * lambda_factor(replace(config, warmup_epochs=0), done / span.steps)
        case "cosine":
            length = (span.end - span.first) * span.steps - config.warmup_steps
            return rise * half_cosine(config, max(done - config.warmup_steps, 0), length)
        case "reduce_on_plateau":
            return rise * plateau_factor(config, losses)
        case _:
            return rise
