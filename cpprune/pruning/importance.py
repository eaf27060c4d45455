"""Channel importance: scores of the groups, and the calibration that gradient-based criteria need.

Gradients are taken on a fixed slice of the training clips, which depends on the seed and the split
alone. Each rank computes those of its part; they are summed in integers, so that any number of ranks
gives the same bits.

Shapes: N clips of the slice, n of this rank.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cpprune.distributed.process_group import rank, world_size
from cpprune.models.artifact import Model
from cpprune.models.intercept import AlwaysDouble
from cpprune.pruning.composite import scored
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.criteria import CRITERIA
from cpprune.pruning.groups import ChannelGroup
from shards.errors import UserError
from shards.order import permutation, rank_slice
from shards.split import Split

Saliency = dict[str, Tensor]  # for each parameter by name, that of each weight


def score(
    criterion: str,
    groups: list[ChannelGroup],
    seed: int = 0,
    reduction: str | None = None,
    normaliser: str | None = None,
) -> list[Tensor]:
    """Return the scores of each group, one for each pruning unit: [units] float64 on the host.

    Args:
        criterion: see `CRITERIA`.
        groups: of a network whose weights are, for criteria that need data, their saliency.
        seed: of the criterion random.
        reduction: see `check_options`.
        normaliser: see `check_options`.

    Raises:
        UserError: the criterion cannot rank the channels of a group.
    """
    importance = CRITERIA[criterion].importance(seed)
    if reduction is not None:
        importance.group_reduction = reduction
    if normaliser is not None:
        importance.normalizer = None if normaliser == "none" else normaliser
    scores = []
    for group in groups:
        if group.units == 1:
            scores.append(torch.zeros(1, dtype=torch.float64))  # it cannot get narrower
            continue
        values = importance(scored(group.coupled))
        if values is None:
            raise UserError(
                f"prune.criterion={criterion}: finds nothing to score in {group.layer}, which has no "
                "such layers: use another, such as magnitude, or set prune.fallback_criterion"
            )
        values = values.detach().double().cpu()[torch.tensor(group.members()).T].mean(0)
        if not torch.isfinite(values).all():
            raise UserError(
                f"prune.criterion={criterion}: gives scores that are not finite in {group.layer}; "
                "this network cannot be scored by it (untrained?): use another, such as magnitude"
            )
        if len(values) > 1 and (values == values[0]).all():
            raise UserError(
                f"prune.criterion={criterion}: gives every channel of {group.layer} the same score, "
                "as it does on an untrained network: train first (--init), or use magnitude"
            )
        scores.append(values)
    return scores


def criteria_of(
    criterion: str, fallback: str | None, groups: Sequence[ChannelGroup], seed: int = 0
) -> list[str]:
    """Return which of two criteria scores each group: the second where the first finds nothing.

    Args:
        criterion: see `CRITERIA`.
        fallback: the second one; None: the first for all.
        groups: of a network.
        seed: of the criterion random.
    """
    importance = CRITERIA[criterion].importance(seed)

    def scores(group: ChannelGroup) -> bool:
        return group.units == 1 or importance(scored(group.coupled)) is not None

    return [criterion if fallback is None or scores(group) else fallback for group in groups]


def calibration_rows(config: PruneConfig, train: Split, seed: int) -> NDArray[np.int64]:
    """Return the slice of the training clips that is measured on, [N]: a function of the seed."""
    return np.sort(permutation(len(train), seed, len(train))[: config.calibration_clips])


def measure_saliency(
    config: PruneConfig,
    model: Model,
    train: Split,
    seed: int,
    device: torch.device,
    network: nn.Module | None = None,
) -> Saliency | None:
    """Return the saliency of each weight on the training clips; None if the criterion needs no data.

    Every rank has to call it.

    Args:
        config: the criterion, and how many clips.
        model: front end and network.
        train: the training split.
        seed: of the run.
        device: of the model.
        network: in place of the model's own, such as one without blocks.
    """
    if not CRITERIA[config.criterion].needs_data:
        return None
    slice_ = calibration_rows(config, train, seed)
    own = rank_slice(slice_, rank(), world_size())
    clips = torch.from_numpy(train.fetch(own)).to(device)
    labels = torch.from_numpy(train.labels[own]).to(device)
    network = model.network if network is None else network
    return saliency(config.criterion, network, model.features(clips), labels, len(slice_))


def saliency(
    criterion: str, network: nn.Module, x_nCFT: Tensor, label_n: Tensor, total: int
) -> Saliency:
    """Return the saliency of each weight under the mean cross-entropy of the slice, float32.

    Args:
        criterion: one that needs data.
        network: unwrapped module; it is not changed.
        x_nCFT: features of this rank's clips of the slice.
        label_n: their classes.
        total: N.
    """
    rule = CRITERIA[criterion]
    # In evaluation mode a clip's gradient does not depend on the rest of the batch.
    twin = copy.deepcopy(network).double().eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    parameters = dict(twin.named_parameters())
    sums = {name: ExactSum(p) for name, p in parameters.items()}
    with torch.enable_grad(), AlwaysDouble(), torch.autocast(x_nCFT.device.type, enabled=False):
        for i in range(len(x_nCFT)):
            logits = twin(x_nCFT[i : i + 1].double())
            loss = functional.cross_entropy(logits, label_n[i : i + 1])
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    squared = rule.needs == "squared_gradients"
                    sums[name].add(gradient.square() if squared else gradient)
    return {
        name: rule.function(parameter.detach(), sums[name].over_ranks() / total).float()
        for name, parameter in parameters.items()
    }


class ExactSum:
    """A sum of float64 tensors that does not depend on the order of addition.

    Each number is split into a multiple of 2^-30 and a remainder in multiples of 2^-80, both summed in
    int64: up to 8,192 numbers below 2^20 each.

    Args:
        like: a tensor of the same shape and device.
    """

    def __init__(self, like: Tensor) -> None:
        self.coarse = torch.zeros_like(like, dtype=torch.int64)
        self.fine = torch.zeros_like(self.coarse)
        self.lost = torch.zeros_like(self.coarse)

    def add(self, value: Tensor) -> None:
        """Add a tensor."""
        value = value.detach()
        lost = ~(value.abs() < 2.0**20)  # too large, infinite or NaN
        value = torch.where(lost, 0.0, value)
        coarse = (value * 2.0**30).round()
        self.coarse += coarse.long()
        self.fine += ((value - coarse * 2.0**-30) * 2.0**80).round().long()
        self.lost += lost

    def over_ranks(self) -> Tensor:
        """Return the sum over all ranks, float64; NaN where a number was too large."""
        if world_size() > 1:
            for part in (self.coarse, self.fine, self.lost):
                dist.all_reduce(part)
        total = self.coarse.double() * 2.0**-30 + self.fine.double() * 2.0**-80
        return torch.where(self.lost > 0, torch.nan, total)
