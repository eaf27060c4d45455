"""Sensitivity curves: the file of `cpprune sensitivity`, and the cost of each pruning unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from cpprune.pruning.groups import ChannelGroup
from shards.errors import UserError
from shards.files.documents import read_json

FORMAT = 1


@dataclass(frozen=True)
class Curve:
    """What cutting one group alone does to the log loss.

    Attributes:
        width: of the group before any cut.
        cut: parts of its channels, rising, from 0 on [M].
        increase: of the log loss at these, in nats, never falling, from 0 on [M].
    """

    width: int
    cut: NDArray[np.float64]
    increase: NDArray[np.float64]


@dataclass(frozen=True)
class Sensitivity:
    """The curves of a network, by layer, and where they stand.

    Attributes:
        source: the file.
        criterion: by which the channels were chosen.
        curves: one a group.
    """

    source: Path
    criterion: str
    curves: Mapping[str, Curve]


def read_sensitivity(path: Path) -> Sensitivity:
    """Read what `cpprune sensitivity` wrote.

    The log loss is taken rather than the accuracy: it moves with every clip, while a thousand clips
    tell accuracies apart in steps of a tenth of a percent and more by chance. A loss that falls again
    at a larger cut is noise, so a curve is the largest increase up to each cut.

    Raises:
        UserError: no such file, or it holds something else.
    """
    remedy = "make it anew with `cpprune sensitivity`"
    found = read_json(path, _File, nan=True, remedy=remedy)
    try:
        if found.format != FORMAT:
            raise ValueError(f"format {found.format!r}, not {FORMAT}")
        curves = {row.layer: _curve(row, found.baseline.log_loss) for row in found.layers}
        return Sensitivity(path, found.criterion, curves)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {remedy}") from None


@dataclass(frozen=True)
class _Baseline:
    log_loss: float


@dataclass(frozen=True)
class _Layer:
    layer: str
    width: Annotated[int, Meta(ge=1, le=1 << 40)]
    widths: list[Annotated[int, Meta(ge=0, le=1 << 40)]]
    log_loss: list[float | None]


@dataclass(frozen=True)
class _File:
    """What a file of sensitivities holds, as far as it is read."""

    format: object
    criterion: str
    baseline: _Baseline
    layers: Annotated[list[_Layer], Meta(min_length=1)]


def _curve(row: _Layer, baseline: float) -> Curve:
    cut = 1 - np.array([row.width, *row.widths], np.float64) / row.width
    increase = np.array([baseline, *row.log_loss], np.float64) - baseline
    if cut.shape != increase.shape or not np.isfinite(increase).all() or (np.diff(cut) < 0).any():
        raise ValueError(f"{row.layer}: widths must fall, each with a log loss")
    return Curve(row.width, cut, np.maximum.accumulate(increase))


def unit_costs(
    sensitivity: Sensitivity,
    groups: Sequence[ChannelGroup],
    originals: Sequence[int],
    criterion: str,
) -> list[Tensor]:
    """Return what it costs to cut the first, the second … unit of each group, [units] nats each.

    Cutting the cheapest first keeps the costs of all groups below one threshold, however much is cut.
    Nothing is known beyond the largest cut that was measured: a group goes there only when all groups
    have come to theirs, and then all go on alike. Equal costs are told apart by the part that is cut.

    Args:
        sensitivity: what was measured.
        groups: of the network, as wide as it is now.
        originals: their widths at the start of the run.
        criterion: by which channels are chosen now.

    Raises:
        UserError: it was measured on other layers or widths, or with another criterion.
    """
    if sensitivity.criterion != criterion:
        raise UserError(
            f"{sensitivity.source}: was measured with the criterion {sensitivity.criterion}, not "
            f"prune.criterion={criterion}; set the same, or run cpprune sensitivity --criterion "
            f"{criterion}"
        )
    here = {group.layer: width for group, width in zip(groups, originals, strict=True)}
    there = {layer: curve.width for layer, curve in sensitivity.curves.items()}
    if here != there:
        odd = sorted(layer for layer in here | there if here.get(layer) != there.get(layer))
        raise UserError(
            f"{sensitivity.source}: was measured on a network of other layers or widths (differing: "
            f"{', '.join(odd[:3])}{' …' if len(odd) > 3 else ''}); run cpprune sensitivity on this one"
        )
    beyond = max(float(curve.increase[-1]) for curve in sensitivity.curves.values())
    costs = []
    for group in groups:
        curve = sensitivity.curves[group.layer]
        units = curve.width // group.blocks  # of the original width, which the group may have left
        fraction = np.arange(1, units + 1) / units
        cost = np.interp(fraction, curve.cut, curve.increase)
        cost = np.where(fraction > curve.cut[-1] + 1e-9, beyond + fraction - curve.cut[-1], cost)
        costs.append(torch.from_numpy(cost + 1e-9 * fraction))
    return costs
