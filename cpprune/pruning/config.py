"""Settings of the pruning schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cpprune.pruning.criteria import CRITERIA, check_options
from cpprune.settings.choices import check_choices


@dataclass(kw_only=True)
class PruneConfig:
    """The pruning schedule; without a ratio, a budget or a plan nothing is pruned."""

    ratio: float | None = None
    """fraction of the channels to remove, of the widths at the start of the run, such as 0.41"""
    budget: str | None = None
    """upper limits instead of a ratio, one or more of params<=47028,macs<=10e6,bytes<=128000@fp16,
    latency<=3ms; latency is that of one clip, measured on the device of the run"""
    plan: str | None = None
    """file of a pruning plan to apply as it is, instead of a ratio or a budget"""
    save_plan: str | None = None
    """with --dry-run: write the plan to this file, for prune.plan"""
    criterion: Literal[tuple(CRITERIA)] = "magnitude"  # type: ignore[valid-type]
    """importance criterion"""
    reduction: Literal["mean", "sum", "max", "prod"] | None = None
    """how the scores of a channel in the coupled layers of its group are combined: mean, sum, max or
    prod (default: the criterion's own)"""
    normaliser: Literal["mean", "max", "sum", "none"] | None = None
    """statistic that a group's scores are divided by, for prune.scope=global: mean, max, sum or none
    (default: the criterion's own)"""
    calibration_clips: int = 64
    """taylor and hessian: number of training clips on which the effect on the loss is measured"""
    scope: Literal["local", "global", "sensitivity"] = "local"
    """how cuts are spread: local: the same fraction of every layer; global: the least important
    channels of the whole network; sensitivity: from every layer what raises the log loss by less than
    one threshold, see prune.sensitivity"""
    sensitivity: str | None = None
    """prune.scope=sensitivity: the sensitivity.json that `cpprune sensitivity` wrote for this network"""
    steps: int = 1
    """number of pruning steps, with training between them"""
    start_epoch: int = 0
    """epoch, counted from 0, that begins with the first pruning step"""
    every_epochs: int = 1
    """epochs from one pruning step to the next"""
    ramp: Literal["widths", "linear", "cubic", "exponential"] = "widths"
    """how the steps approach the target: widths (equal steps of every layer's width), or the parameter
    count along a linear, cubic or exponential curve"""
    learning_rate: Literal["continue", "rewind"] = "continue"
    """continue: one learning-rate schedule over the whole run; rewind: it restarts after every pruning
    step"""
    sparsity: Literal["none", "slimming", "group_norm", "growing"] = "none"
    """regularizer that drives channels to zero before the last pruning step: none, slimming, group_norm
    or growing"""
    sparsity_strength: float = 1e-4
    """weight of that regularizer in the loss"""
    min_width: int = 1
    """smallest width of a pruned layer, in channels"""
    round_to: int = 1
    """pruned widths are multiples of this"""
    carry_state: bool = True
    """keep the optimizer state of the remaining channels; false resets it at every pruning step"""

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
            from cpprune.pruning.allocation import parse_budget

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
        check_choices(self, "prune")
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
        if self.sparsity != "none" and self.prunes and self.last_epoch == 0:
            raise ValueError(
                f"prune.sparsity={self.sparsity} acts before the cut, which comes at the very start: "
                "set prune.start_epoch"
            )

    @property
    def prunes(self) -> bool:
        """Whether there is anything to cut."""
        return any(how is not None for how in (self.ratio, self.budget, self.plan))

    @property
    def last_epoch(self) -> int:
        """Epoch that begins with the last pruning step."""
        return self.start_epoch + (self.steps - 1) * self.every_epochs
