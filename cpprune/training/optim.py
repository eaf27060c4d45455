"""Optimizers by name, and learning-rate schedules as pure functions of what has been."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from cpprune.training.config import OptimConfig


def build_optimizer(
    config: OptimConfig,
    parameters: Sequence[nn.Parameter],
    fused: bool = True,
    capturable: bool = False,
) -> torch.optim.Optimizer:
    """Return the optimizer named in the config over these parameters.

    Args:
        config: which, and its numbers.
        parameters: all that it moves.
        fused: one kernel for all of them, which can skip a step without the host looking.
        capturable: keep the learning rate beside the parameters, where a CUDA graph can read it.
    """
    lr = torch.tensor(config.lr, device=parameters[0].device) if capturable else config.lr
    if config.name == "sgd":
        sgd = torch.optim.SGD(
            parameters, lr=lr, momentum=0.9, weight_decay=config.weight_decay, fused=fused
        )
        for parameter in parameters if fused else []:
            # Fused, a first step that is skipped would leave a momentum of whatever lay there.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(
        parameters, lr=lr, weight_decay=config.weight_decay, fused=fused, capturable=capturable
    )


def warmup(epoch: float, epochs: int) -> float:
    """Return exp(−5·(1 − clip(epoch, 0.5, w)/w)²), the exponential warm-up over w epochs.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", 2017.
    """
    if epoch >= epochs:
        return 1.0
    phase = 1 - min(max(epoch, 0.5), epochs) / epochs
    return math.exp(-5 * phase * phase)


def lambda_factor(config: OptimConfig, epoch: int) -> float:
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
    part = (epoch - config.warmup_epochs) / max(1, epochs - 1 - config.warmup_epochs)
    return (
        config.last_factor + (1 - config.last_factor) * (1 + math.cos(math.pi * min(part, 1))) / 2
    )


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


def lr_factor(
    config: OptimConfig, epoch: int, epochs: int, val_losses: Sequence[float | None]
) -> float:
    """Return what the learning rate is multiplied with in this epoch.

    Args:
        config: which schedule, and its numbers.
        epoch: from 0.
        epochs: how many there are in all.
        val_losses: validation losses of the epochs before; None where it was not finite.
    """
    match config.schedule:
        case "lambda":
            return lambda_factor(config, epoch)
        case "cosine":
            return cosine_factor(config, epoch, epochs)
        case "reduce_on_plateau":
            return plateau_factor(config, val_losses)
        case _:
            return 1.0
