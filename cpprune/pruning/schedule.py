"""When the network shrinks, and to what part of its widths."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cpprune.pruning.criteria import CRITERIA

SCOPES = ("local", "global")


@dataclass(kw_only=True)
class PruneConfig:
    """A pruning schedule; without a ratio nothing is pruned."""

    ratio: float | None = None
    """part of the channels to cut, of the widths at the start of the run, e.g. 0.41"""
    criterion: str = "magnitude"
    """magnitude, bn_scale or group_norm"""
    scope: str = "local"
    """local: the same part of every layer; global: the least important channels of all"""
    steps: int = 1
    """cut in this many steps, with training between them"""
    start_epoch: int = 0
    """the first step comes at the beginning of this epoch"""
    every_epochs: int = 1
    """epochs from one step to the next"""

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(
                f"prune.ratio={self.ratio}: must be above 0 and below 1 (0.41 cuts 41 % of the "
                "channels)"
            )
        if self.criterion not in CRITERIA:
            raise ValueError(
                f"prune.criterion={self.criterion!r}: choose one of {', '.join(CRITERIA)}"
            )
        if self.scope not in SCOPES:
            raise ValueError(f"prune.scope={self.scope!r}: choose one of {', '.join(SCOPES)}")
        if self.steps < 1 or self.every_epochs < 1 or self.start_epoch < 0:
            raise ValueError(
                f"prune.steps={self.steps}, prune.every_epochs={self.every_epochs} must be at least "
                f"1 and prune.start_epoch={self.start_epoch} at least 0"
            )


@dataclass(frozen=True)
class Event:
    """At the beginning of `epoch`, cut until `ratio` of the original channels is gone."""

    epoch: int
    ratio: float


def events(config: PruneConfig) -> list[Event]:
    """Return the schedule's events in order; the ratio grows linearly over the steps."""
    if config.ratio is None:
        return []
    return [
        Event(
            epoch=config.start_epoch + step * config.every_epochs,
            ratio=config.ratio * (step + 1) / config.steps,
        )
        for step in range(config.steps)
    ]


def channels_left(width: int, ratio: float) -> int:
    """Return how many of `width` channels are left when `ratio` of them is cut: at least one."""
    return max(1, math.floor(width * (1 - ratio) + 1e-9))
