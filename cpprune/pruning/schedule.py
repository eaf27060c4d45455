"""When the network shrinks, and to what part of its widths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpprune.pruning.allocation import parse_budget
from cpprune.pruning.criteria import CRITERIA, check_options
from cpprune.pruning.curves import read_sensitivity
from cpprune.pruning.ramp import RAMPS
from cpprune.pruning.regularizers import PENALTIES

SCOPES = ("local", "global", "sensitivity")
LEARNING_RATES = ("continue", "rewind")


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
    reduction: str | None = None
    """how the scores of a channel in the layers of its group become one: mean, sum, max or prod
    (default: the criterion's own)"""
    normaliser: str | None = None
    """what a group's scores are divided by, for prune.scope=global: mean, max, sum or none (default: the
    criterion's own)"""
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
    ramp: str = "widths"
    """what the steps follow: widths (equal parts of the way), or the number of parameters along a
    linear, cubic or exponential curve"""
    learning_rate: str = "continue"
    """continue: one schedule over the whole run; rewind: it begins anew with every step"""
    sparsity: str = "none"
    """penalty before the last step that drives channels to zero: none, slimming, group_norm or
    growing"""
    sparsity_strength: float = 1e-4
    """factor of that penalty in the loss"""
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
        for name, choices in (
            ("criterion", CRITERIA),
            ("scope", SCOPES),
            ("ramp", RAMPS),
            ("learning_rate", LEARNING_RATES),
            ("sparsity", PENALTIES),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"prune.{name}={value!r}: choose one of {', '.join(choices)}")
        check_options(self.criterion, self.reduction, self.normaliser)
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
        if not 0 < self.sparsity_strength < math.inf:
            raise ValueError(f"prune.sparsity_strength={self.sparsity_strength}: must be above 0")
        if self.sparsity != "none" and self.prunes and events(self)[-1].epoch == 0:
            raise ValueError(
                f"prune.sparsity={self.sparsity} acts before the cut, which comes at the very start: "
                "set prune.start_epoch"
            )

    @property
    def prunes(self) -> bool:
        """Whether there is anything to cut."""
        return any(how is not None for how in (self.ratio, self.budget, self.plan))


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
