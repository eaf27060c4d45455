"""How important each channel is, by Torch-Pruning's importance functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpprune.pruning.groups import ChannelGroup
from shards.errors import InputError
from shards.random_stream import RandomStream


def _norm(p: int, reduction: str, normaliser: str) -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        import torch_pruning as tp

        return tp.importance.MagnitudeImportance(
            p=p, group_reduction=reduction, normalizer=normaliser
        )

    return make


def _library(name: str) -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        import torch_pruning as tp

        return getattr(tp.importance, name)()

    return make


def _random(seed: int) -> Any:
    def number(group: Any) -> Tensor:
        # Every machine draws the same for a group of this name and width.
        layer, width = group[0].dep.target.name, len(group[0].idxs)
        words = RandomStream(seed, width, *layer.encode()).words(width)
        return torch.from_numpy(words.astype(np.float64))

    return number


# What scores the channels of a group, made for a seed.
CRITERIA: dict[str, Callable[[int], Any]] = {
    # mean L1 norm over the tensors of the group (Li et al., ICLR 2017)
    "magnitude": _norm(1, "mean", "mean"),
    # the same with L2 (squared)
    "magnitude_l2": _norm(2, "mean", "mean"),
    # BatchNorm's scaling factors (Liu et al., "Network Slimming", ICCV 2017)
    "bn_scale": _library("BNScaleImportance"),
    # L2 norm over the whole group (Fang et al., CVPR 2023)
    "group_norm": _norm(2, "sum", "max"),
    # layer-adaptive magnitude (Lee et al., ICLR 2021)
    "lamp": _library("LAMPImportance"),
    # distance from the geometric median (He et al., CVPR 2019)
    "fpgm": _library("FPGMImportance"),
    # first- and second-order effect on the loss: see `cpprune.pruning.saliency`
    "taylor": _norm(1, "mean", "mean"),
    "hessian": _norm(1, "mean", "mean"),
    # the control of all criteria
    "random": _random,
}


REDUCTIONS = ("mean", "sum", "max", "prod")
NORMALISERS = ("mean", "max", "sum", "none")


def check_options(criterion: str, reduction: str | None, normaliser: str | None) -> None:
    """Raise ValueError unless a criterion can be scored in this way; None is its own way.

    Args:
        criterion: see `CRITERIA`.
        reduction: how the scores that a channel has in the layers of its group become one.
        normaliser: what the scores of a group are divided by.
    """
    for name, value, choices in (
        ("reduction", reduction, REDUCTIONS),
        ("normaliser", normaliser, NORMALISERS),
    ):
        if value is not None and value not in choices:
            raise ValueError(f"prune.{name}={value!r}: choose one of {', '.join(choices)}")
        if value is not None and (criterion == "random" or (criterion, name) == FIXED):
            raise ValueError(f"prune.criterion={criterion} has no prune.{name}: leave it out")


# LAMP is a normaliser.
FIXED = ("lamp", "normaliser")


def score(
    criterion: str,
    groups: list[ChannelGroup],
    seed: int = 0,
    reduction: str | None = None,
    normaliser: str | None = None,
) -> list[Tensor]:
    """Return the scores of each group: one a unit, [width / blocks] float64 on the host.

    Args:
        criterion: see `CRITERIA`.
        groups: from `channel_groups`.
        seed: of the criterion random.
        reduction: see `check_options`.
        normaliser: see `check_options`.

    Raises:
        InputError: the criterion cannot tell the channels of a group apart on this network.
    """
    importance = CRITERIA[criterion](seed)
    if reduction is not None:
        importance.group_reduction = reduction
    if normaliser is not None:
        importance.normalizer = None if normaliser == "none" else normaliser
    scores = []
    for group in groups:
        found = importance(group.coupled)
        if found is None:
            raise InputError(
                f"prune.criterion={criterion}: finds nothing to score in {group.layer}, which has no "
                "such layers: use another, such as magnitude"
            )
        values = found.detach().double().cpu()
        values = values.view(group.blocks, -1).mean(0)
        if not torch.isfinite(values).all():
            raise InputError(
                f"prune.criterion={criterion}: gives scores that are not finite in {group.layer}; "
                "this network cannot be scored by it (untrained?): use another, such as magnitude"
            )
        if len(values) > 1 and (values == values[0]).all():
            raise InputError(
                f"prune.criterion={criterion}: gives every channel of {group.layer} the same score, "
                "as it does on an untrained network: train first (--init), or use magnitude"
            )
        scores.append(values)
    return scores
