"""Settings of the pruning schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cpprune.pruning.budget import parse_budget
from cpprune.pruning.criteria import CRITERIA, check_fallback, check_options
from cpprune.settings.choices import check_choices


@dataclass(kw_only=True)
class PruneConfig:
    """The pruning schedule; without a ratio, ratios, a budget, blocks or a plan nothing is pruned."""

    ratio: float | None = None
    """fraction of the channels to remove, of the widths at the start of the run, such as 0.41"""
    budget: str | None = None
    """upper limits instead of a ratio, one or more of params<=47028,macs<=10e6,
    operations<=10e6,bytes<=128000@fp16,exported<=60000@int8,ram<=200000@int8,flash<=60000@int8,
    latency<=3ms,latency<=3ms@onnx-int8; exported is the network in the ONNX file of cpprune export; ram
    and flash are what it needs in C beside its features (cpprune export --to c); latency is that of one
    clip, measured on the device of the run, or on one thread of this machine as an export to a target
    in a precision"""
    ratios: dict[str, float] = field(default_factory=dict)
    """layers with a ratio of their own, whatever prune.ratio or prune.budget says: patterns as in
    prune.ignore, such as {"stage1.*": 0.2, "stage3.*": 0}; of several that match a layer, the last
    counts"""
    blocks: int = 0
    """number of whole residual blocks to remove at the first pruning step, those that change their input
    least; alone, or with a ratio or a budget, which is then that of the network that is left"""
    plan: str | None = None
    """file of a pruning plan to apply as it is, instead of a ratio or a budget"""
    save_plan: str | None = None
    """with --dry-run: write the plan to this file, for prune.plan"""
    criterion: Literal[tuple(CRITERIA)] = "magnitude"  # type: ignore[valid-type]
    """importance criterion"""
    fallback_criterion: Literal[tuple(CRITERIA)] | None = None  # type: ignore[valid-type]
    """criterion for layers without what prune.criterion looks at, such as bn_scale without BatchNorm,
    which is refused otherwise; with prune.scope=local or isomorphic, where scores of two criteria are
    never compared"""
    reduction: Literal["mean", "sum", "max", "prod"] | None = None
    """how the scores of a channel in the coupled layers of its group are combined: mean, sum, max or
    prod (default: the criterion's own)"""
    normaliser: Literal["mean", "max", "sum", "none"] | None = None
    """statistic that a group's scores are divided by, for prune.scope=global: mean, max, sum or none
    (default: the criterion's own)"""
    calibration_clips: int = 64
    """number of training clips on which taylor and hessian measure the effect on the loss, and
    prune.blocks how much blocks change their input"""
    scope: Literal["local", "global", "isomorphic", "sensitivity"] = "local"
    """how cuts are spread: local: the same fraction of every layer; global: the least important
    channels of the whole network; isomorphic: the least important channels among layers that are
    coupled in the same way, the same fraction of each kind; sensitivity: from every layer what raises
    the log loss by less than one threshold, see prune.sensitivity"""
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
    ignore: list[str] = field(default_factory=list)
    """layers that keep their width, and with them all that they are coupled with, and blocks that
    prune.blocks leaves: names or patterns, such as [stem.*, conv1]"""
    max_ratio: float = 1.0
    """largest fraction of any layer's channels that may be removed, of its width at the start of the
    run"""
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
        for pattern, ratio in self.ratios.items():
            if not 0 <= ratio < 1:
                raise ValueError(
                    f"prune.ratios: {pattern}: {ratio}: must be at least 0 (nothing is cut) and below 1"
                )
            if ratio > self.max_ratio:
                raise ValueError(
                    f"prune.ratios: {pattern}: {ratio}: is above prune.max_ratio={self.max_ratio}"
                )
        given = [n for n in ("ratio", "budget", "plan") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"prune.{' and prune.'.join(given)}: give one of them, not both")
        if self.plan is not None and self.steps != 1:
            raise ValueError("prune.plan: a plan is applied in one step; leave out prune.steps")
        if self.plan is not None and self.ratios:
            raise ValueError(
                "prune.plan: a plan says what is cut of every layer; leave out prune.ratios"
            )
        self._check_blocks()
        if self.plan is not None and self.start_epoch:
            raise ValueError(
                f"prune.plan with prune.start_epoch={self.start_epoch}: a plan is for a network as it "
                "is, so it is applied at the start; leave out prune.start_epoch"
            )
        if self.budget is not None:
            parse_budget(self.budget)
        if self.calibration_clips < 1:
            raise ValueError(
                f"prune.calibration_clips={self.calibration_clips}: must be at least 1"
            )
        if not 0 < self.max_ratio <= 1:
            raise ValueError(f"prune.max_ratio={self.max_ratio}: must be above 0 and at most 1")
        if self.min_width < 1 or self.round_to < 1:
            raise ValueError(
                f"prune.min_width={self.min_width}, prune.round_to={self.round_to}: must be at "
                "least 1"
            )
        check_choices(self, "prune")
        check_options(self.criterion, self.reduction, self.normaliser)
        check_fallback(self.criterion, self.fallback_criterion, self.scope)
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

    def _check_blocks(self) -> None:
        if self.blocks < 0:
            raise ValueError(f"prune.blocks={self.blocks}: must be at least 0")
        if not self.blocks:
            return
        if self.plan is not None:
            raise ValueError("prune.plan: a plan says which blocks go; leave out prune.blocks")
        if self.scope == "sensitivity":
            raise ValueError(
                f"prune.blocks={self.blocks} with prune.scope=sensitivity, which was measured with all "
                "blocks: remove the blocks first, then run cpprune sensitivity on the model that is left"
            )
        if self.steps != 1 and not self.cuts_channels:
            raise ValueError(
                f"prune.blocks={self.blocks}: all go at the first step, so that nothing is left for "
                f"prune.steps={self.steps}: leave it out, or set prune.ratio or prune.budget"
            )

    @property
    def prunes(self) -> bool:
        """Whether there is anything to cut."""
        return self.cuts_channels or bool(self.blocks)

    @property
    def cuts_channels(self) -> bool:
        """Whether there are channels to cut."""
        given = any(how is not None for how in (self.ratio, self.budget, self.plan))
        return given or bool(self.ratios)

    @property
    def last_epoch(self) -> int:
        """Epoch that begins with the last pruning step."""
        return self.start_epoch + (self.steps - 1) * self.every_epochs
