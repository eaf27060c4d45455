"""When the network is pruned, and how far."""

from __future__ import annotations

from dataclasses import dataclass

from cpprune.pruning.config import PruneConfig


@dataclass(frozen=True)
class Event:
    """A pruning step: at the start of `epoch`, after which `fraction` of the schedule is done."""

    epoch: int
    fraction: float


def events(config: PruneConfig) -> list[Event]:
    """Return the schedule's events in order; the ramp says what their fractions mean."""
    if not config.prunes:
        return []
    return [
        Event(
            epoch=config.start_epoch + step * config.every_epochs,
            fraction=(step + 1) / config.steps,
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
