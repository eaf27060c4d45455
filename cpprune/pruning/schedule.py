"""When the network shrinks, and to what part of its widths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpprune.pruning.config import PruneConfig
from cpprune.pruning.curves import read_sensitivity


@dataclass(frozen=True)
class Event:
    """At the beginning of `epoch`, cut until this part of the way to the end is gone."""

    epoch: int
    part: float


def events(config: PruneConfig) -> list[Event]:
    """Return the schedule's events in order; what their parts mean is the ramp's."""
    if not config.prunes:
        return []
    return [
        Event(
            epoch=config.start_epoch + step * config.every_epochs,
            part=(step + 1) / config.steps,
        )
        for step in range(config.steps)
    ]


def lr_span(config: PruneConfig, epoch: int, epochs: int) -> tuple[int, int]:
    """Return the first epoch of the learning-rate schedule that an epoch lies in, and its end.

    Source: Renda et al., "Comparing Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020.

    Args:
        config: the pruning schedule.
        epoch: from 0.
        epochs: of the whole run.
    """
    starts = [e.epoch for e in events(config)] if config.learning_rate == "rewind" else []
    return (
        max((start for start in starts if start <= epoch), default=0),
        min((start for start in starts if start > epoch), default=epochs),
    )


def plan_arguments(config: PruneConfig, event: Event, seed: int = 0) -> dict[str, Any]:
    """Return what `make_plan` takes from the configuration for an event.

    Raises:
        InputError: the file of `prune.sensitivity` cannot be read.
    """
    return {
        "criterion": config.criterion,
        "scope": config.scope,
        "ratio": config.ratio,
        "budget": config.budget,
        "part": event.part,
        "ramp": config.ramp,
        "seed": seed,
        "reduction": config.reduction,
        "normaliser": config.normaliser,
        "min_width": config.min_width,
        "round_to": config.round_to,
        "sensitivity": config.sensitivity and read_sensitivity(Path(config.sensitivity)),
    }
