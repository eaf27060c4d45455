"""When the network shrinks, and to what part of its widths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpprune.pruning.budget import parse_budget
from cpprune.pruning.criteria import CRITERIA
from cpprune.pruning.curves import read_sensitivity

SCOPES = ("local", "global", "sensitivity")


@dataclass(kw_only=True)
class PruneConfig:
    """A pruning schedule; without a ratio or a budget nothing is pruned."""

    ratio: float | None = None
    """part of the channels to cut, of the widths at the start of the run, e.g. 0.41"""
    budget: str | None = None
    """limits instead of a ratio: params<=47028,macs<=10e6,bytes<=128000@fp16,latency<=3ms, any of
    them; the latency is that of one clip, measured on the device of the run"""
    plan: str | None = None
    """file of a plan to apply exactly, instead of a ratio or a budget"""
    save_plan: str | None = None
    """with --dry-run: write the plan to this file, for prune.plan"""
    criterion: str = "magnitude"
    """magnitude, magnitude_l2, bn_scale, group_norm, lamp, fpgm, taylor, hessian or random"""
    calibration_clips: int = 64
    """taylor and hessian: training clips that the effect on the loss is measured on"""
    scope: str = "local"
    """local: the same part of every layer; global: the least important channels of all; sensitivity:
    of every layer what raises the log loss by less than one threshold, see prune.sensitivity"""
    sensitivity: str | None = None
    """for prune.scope=sensitivity: the sensitivity.json of `cpprune sensitivity` for this network"""
    steps: int = 1
    """cut in this many steps, with training between them"""
    start_epoch: int = 0
    """the first step comes at the beginning of this epoch"""
    every_epochs: int = 1
    """epochs from one step to the next"""
    min_width: int = 1
    """no layer gets narrower than this"""
    round_to: int = 1
    """widths are multiples of this"""
    carry_state: bool = True
    """keep the optimizer's moments of the channels that stay; false begins with none"""

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(
                f"prune.ratio={self.ratio}: must be above 0 and below 1 (0.41 cuts 41 % of the "
                "channels)"
            )
        given = [n for n in ("ratio", "budget", "plan") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"prune.{' and prune.'.join(given)}: give one of them, not both")
        if self.plan is not None and self.steps != 1:
            raise ValueError("prune.plan: a plan is applied in one step; leave out prune.steps")
        if self.budget is not None:
            parse_budget(self.budget)
        if self.calibration_clips < 1:
            raise ValueError(
                f"prune.calibration_clips={self.calibration_clips}: must be at least 1"
            )
        if self.min_width < 1 or self.round_to < 1:
            raise ValueError(
                f"prune.min_width={self.min_width}, prune.round_to={self.round_to}: must be at "
                "least 1"
            )
        if self.criterion not in CRITERIA:
            raise ValueError(
                f"prune.criterion={self.criterion!r}: choose one of {', '.join(CRITERIA)}"
            )
        if self.scope not in SCOPES:
            raise ValueError(f"prune.scope={self.scope!r}: choose one of {', '.join(SCOPES)}")
        if (self.scope == "sensitivity") != (self.sensitivity is not None):
            raise ValueError(
                f"prune.scope={self.scope}, prune.sensitivity={self.sensitivity}: the scope "
                "sensitivity needs the sensitivity.json of `cpprune sensitivity`, and no other takes it"
            )
        if self.steps < 1 or self.every_epochs < 1 or self.start_epoch < 0:
            raise ValueError(
                f"prune.steps={self.steps}, prune.every_epochs={self.every_epochs} must be at least "
                f"1 and prune.start_epoch={self.start_epoch} at least 0"
            )

    @property
    def prunes(self) -> bool:
        """Whether there is anything to cut."""
        return any(how is not None for how in (self.ratio, self.budget, self.plan))


@dataclass(frozen=True)
class Event:
    """At the beginning of `epoch`, cut until this part of the way to the final widths is gone."""

    epoch: int
    part: float


def events(config: PruneConfig) -> list[Event]:
    """Return the schedule's events in order; the part grows linearly over the steps."""
    if not config.prunes:
        return []
    return [
        Event(
            epoch=config.start_epoch + step * config.every_epochs,
            part=(step + 1) / config.steps,
        )
        for step in range(config.steps)
    ]


def plan_arguments(config: PruneConfig, event: Event) -> dict[str, Any]:
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
        "min_width": config.min_width,
        "round_to": config.round_to,
        "sensitivity": config.sensitivity and read_sensitivity(Path(config.sensitivity)),
    }
