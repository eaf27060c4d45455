"""How many channels each group keeps: from a ratio, or from limits on the cost of the network.

Shapes: G channel groups, N candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.pruning.budget import Limit
from cpprune.pruning.costs import CostModel, Widths
from cpprune.pruning.groups import ChannelGroup
from shards.errors import UserError
from shards.random_stream import RandomStream

# Candidates tried around the allocation, to use up what the limits leave.
CANDIDATES = 60_000

# The settings that decide how narrow a layer may become.
LEAST = "prune.min_width, prune.max_ratio, prune.ratios"


def feasible(model: CostModel, limits: Sequence[Limit], widths_NG: Widths) -> NDArray[np.bool_]:
    """Return which candidates meet all limits on what is counted, [N]."""
    cost = model.cost(widths_NG)
    met = np.ones(len(widths_NG), np.bool_)
    for limit in limits:
        met &= cost[limit.quantity] <= limit.bound + 1e-6
    return met


def utilisation(
    model: CostModel, limits: Sequence[Limit], widths_NG: Widths
) -> NDArray[np.float64]:
    """Return the share of its tightest limit that each candidate uses, [N]."""
    cost = model.cost(widths_NG)
    shares = np.array([cost[limit.quantity] / limit.bound for limit in limits])
    tightest: NDArray[np.float64] = shares.max(axis=0)
    return tightest


@dataclass(frozen=True)
class Bounds:
    """Bounds of the widths, [G] each.

    Attributes:
        narrowest: smallest allowed widths.
        widest: largest allowed widths: the current ones.
        multiple: widths are multiples of this, or the largest.
    """

    narrowest: Widths
    widest: Widths
    multiple: Widths

    def held(self, where: NDArray[np.bool_], widths: Widths) -> Bounds:
        """Return bounds that leave some groups, [G], only these widths, [G]."""
        narrowest = np.where(where, widths, self.narrowest)
        return Bounds(narrowest, np.where(where, widths, self.widest), self.multiple)

    def fit(self, widths_NG: Widths) -> Widths:
        """Return the nearest allowed widths that are not wider."""
        rounded = widths_NG // self.multiple * self.multiple
        fitted: Widths = np.clip(rounded, self.narrowest, self.widest)
        return fitted


def bounds(
    groups: Sequence[ChannelGroup],
    min_width: int,
    round_to: int,
    least_widths: Sequence[float] | None = None,
) -> Bounds:
    """Return the bounds of these groups.

    Args:
        groups: G groups.
        min_width: smallest width of any of them.
        round_to: widths are multiples of this.
        least_widths: smallest width of each, [G]; it need not be a whole number.
    """
    widest = np.array([group.width for group in groups], np.int64)
    multiple = np.array([math.lcm(group.blocks, round_to) for group in groups], np.int64)
    wanted = np.maximum(min_width, 1 if least_widths is None else np.array(least_widths))
    least = np.ceil(wanted / multiple - 1e-9).astype(np.int64) * multiple
    return Bounds(np.minimum(least, widest), widest, multiple)


def uniform(original: Sequence[int], ratio: float | NDArray[np.float64]) -> Widths:
    """Return the widths after removing a fraction of every group, the same or one each, rounded down."""
    return np.floor(np.array(original) * (1 - ratio) + 1e-9).astype(np.int64)


def lowest_first(
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    total: int,
    narrowest: Widths | None = None,
) -> Widths:
    """Return the widths when the lowest scores go until at most `total` channels are left.

    Args:
        groups: G groups.
        scores: of the units of each.
        total: channels to leave; more are left where the narrowest widths need it.
        narrowest: widths that stay in any case, [G]; by default one unit of each group.
    """
    blocks = np.array([group.blocks for group in groups], np.int64)
    widths = blocks.copy() if narrowest is None else narrowest // blocks * blocks
    pool = []
    for group, values in enumerate(scores):
        best_first = torch.argsort(values, descending=True, stable=True).tolist()
        for unit in best_first[widths[group] // blocks[group] :]:
            pool.append((-float(values[unit]), group, unit))
    left = total - int(widths.sum())
    for _, group, _ in sorted(pool):
        left -= groups[group].blocks
        if left < 0:
            break
        widths[group] += groups[group].blocks
    return widths


def allocate(
    model: CostModel,
    limits: Sequence[Limit],
    allowed: Bounds,
    narrowing: Callable[[float], Widths],
) -> Widths:
    """Return widths that meet all limits on what is counted and leave as little unused as possible.

    The narrowing is followed until all limits are met; then candidates close to it are tried, and the
    one that uses the tightest limit most is taken; among equals, the one closest to the narrowing.

    Args:
        model: what widths cost.
        limits: all have to be met.
        allowed: what widths may be.
        narrowing: widths for the fraction that is removed, from 0 to 1.

    Raises:
        UserError: no widths meet all limits; it names the limit and the least that is possible.
    """
    if not feasible(model, limits, allowed.narrowest[None])[0]:
        cost = model.cost(allowed.narrowest[None])
        failing = [
            f"{limit.text} (at least {limit.text_of(cost[limit.quantity][0])})"
            for limit in limits
            if cost[limit.quantity][0] > limit.bound
        ]
        raise UserError(
            f"prune.budget: {', '.join(failing)} cannot be met even at the least widths ({LEAST})"
        )
    if feasible(model, limits, allowed.widest[None])[0]:
        return allowed.widest
    low, high = 0.0, 1.0  # high always fits
    for _ in range(40):
        middle = (low + high) / 2
        fits = feasible(model, limits, allowed.fit(narrowing(middle))[None])[0]
        low, high = (low, middle) if fits else (middle, high)
    base = allowed.fit(narrowing(high))
    spread = np.maximum(1, np.ceil(0.03 * model.widths / allowed.multiple)).astype(np.int64)
    stream = RandomStream(0, *base.tolist())
    steps = stream.integers(2 * spread + 1, CANDIDATES, len(base)) - spread
    steps *= allowed.multiple
    candidates = np.concatenate((base[None], allowed.fit(base + steps)))
    candidates = candidates[feasible(model, limits, candidates)]
    share = np.round(utilisation(model, limits, candidates), 9)
    distance = (((candidates - base) / model.widths) ** 2).sum(1)
    chosen: Widths = candidates[np.lexsort((distance, -share))[0]]
    return chosen


def meet_measured(
    limit: Limit,
    start: Widths,
    allowed: Bounds,
    narrowing: Callable[[float], Widths],
    measure: Callable[[Widths], float],
) -> Widths:
    """Return the first widths along the narrowing that meet a limit when measured.

    They are found by bisection and measured once more, since a measurement can be off; if they fail
    then, the search goes on among narrower ones. A latency that fails is measured a second time, since
    other work on the machine can only slow it down.

    Args:
        limit: on what has to be measured, such as latency.
        start: no group gets wider than this.
        allowed: what widths may be.
        narrowing: widths for the fraction that is removed, from 0 to 1.
        measure: how much the network takes when it is cut to widths, in the unit of the limit's bound.

    Raises:
        UserError: even the least widths take too much; it names the limit and what they take.
    """
    if measure(start) <= limit.bound:
        return start
    path = [start]
    for fraction in np.linspace(0, 1, 1 + int(allowed.widest.sum())):
        widths = np.minimum(start, allowed.fit(narrowing(float(fraction))))
        if (widths != path[-1]).any():
            path.append(widths)
    tries = 2 if limit.quantity == "latency" else 1
    slow, fast = 0, len(path) - 1
    while True:
        while fast - slow > 1:
            middle = (slow + fast) // 2
            fits = any(measure(path[middle]) <= limit.bound for _ in range(tries))
            slow, fast = (slow, middle) if fits else (middle, fast)
        taken = measure(path[fast])
        if taken <= limit.bound:
            return path[fast]
        if fast == len(path) - 1:
            raise UserError(
                f"prune.budget: {limit.text} (at least {limit.text_of(taken)}) cannot be met even at "
                f"the least widths ({LEAST})"
            )
        slow, fast = fast, len(path) - 1


def widened(limit: Limit, start: Widths, end: Widths, measure: Callable[[Widths], float]) -> Widths:
    """Return widths of which only those are less than at the start that have to be.

    Memory is that of the layers at its peak; the others need not get narrower. Groups get their widths
    back by halves, the last layers first.

    Args:
        limit: on what has to be measured.
        start: widths that do not meet it.
        end: widths that do.
        measure: how much the network takes when it is cut to widths, the same each time.
    """

    def restored(widths: Widths, members: NDArray[np.intp]) -> Widths:
        wider = widths.copy()
        wider[members] = start[members]
        if (wider == widths).all() or measure(wider) <= limit.bound:
            return wider
        if len(members) == 1:
            return widths
        first, last = np.array_split(members, 2)
        return restored(restored(widths, last), first)

    return restored(end, np.arange(len(end)))
