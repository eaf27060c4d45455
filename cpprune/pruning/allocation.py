"""How many channels each group keeps: from a ratio, or from limits on the cost of the network.

Shapes: G channel groups, P parameters of the network, D dimensions of a parameter, N candidates.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cpprune.evaluation.complexity import BYTES_PER_PARAMETER, macs_per_parameter
from cpprune.models.example import example_input
from cpprune.pruning.groups import ChannelGroup, dependency_graph, remove_channels
from shards.errors import UserError
from shards.random_stream import RandomStream

Widths = NDArray[np.int64]

# Candidates tried around the allocation, to use up what the limits leave.
CANDIDATES = 60_000


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        text: as it was written.
        quantity: "params" (bytes are parameters × the dtype's width), "macs" or "latency".
        bound: the most there may be; of latency, in milliseconds.
    """

    text: str
    quantity: str
    bound: float


NUMBER = r"[0-9.]+(?:[eE][+-]?[0-9]+)?"
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def parse_budget(text: str) -> list[Limit]:
    """Read "params<=47028,macs<=10e6,bytes<=128000@fp16,latency<=3ms".

    Raises:
        ValueError: it says something else; the message names the part.
    """
    return [_parse_limit(part.strip()) for part in text.split(",")]


def _parse_limit(text: str) -> Limit:
    count = re.fullmatch(rf"(params|macs)\s*<=\s*({NUMBER})", text)
    size = re.fullmatch(rf"bytes\s*<=\s*({NUMBER})@({'|'.join(BYTES_PER_PARAMETER)})", text)
    time = re.fullmatch(rf"latency\s*<=\s*({NUMBER})\s*({'|'.join(MILLISECONDS)})", text)
    try:
        if count and float(count[2]) >= 1:
            return Limit(text, count[1], float(count[2]))
        if size and float(size[1]) >= 1:
            return Limit(text, "params", float(size[1]) // BYTES_PER_PARAMETER[size[2]])
        if time and float(time[1]) > 0:
            return Limit(text, "latency", float(time[1]) * MILLISECONDS[time[2]])
    except ValueError:  # such as 1.2.3
        pass
    raise ValueError(
        f"prune.budget: {text!r} is no limit; write params<=47028, macs<=10e6, bytes<=128000@fp16 "
        f"(dtypes: {', '.join(BYTES_PER_PARAMETER)}) or latency<=3ms (units: "
        f"{', '.join(MILLISECONDS)}), separated by commas"
    )


@dataclass(frozen=True)
class CostModel:
    """Parameters and MACs of a network as a function of the widths of its groups.

    Attributes:
        widths: of the network it was made from, [G].
        sizes: dimensions of every parameter at those widths, [P, D] (1 where there are fewer).
        slopes: how each dimension grows with each width, [P, D, G].
        factors: MACs for each entry of a parameter, [P].
    """

    widths: Widths
    sizes: NDArray[np.float64]
    slopes: NDArray[np.float64]
    factors: NDArray[np.float64]

    def cost(self, widths_NG: Widths) -> dict[str, NDArray[np.float64]]:
        """Return `params` and `macs`, [N] each, for candidates of widths."""
        change = (widths_NG - self.widths).astype(np.float64)
        dims = self.sizes + np.einsum("pdg,ng->npd", self.slopes, change)
        entries = dims.prod(2)
        return {"params": entries.sum(1), "macs": entries @ self.factors}


def cost_model(
    network: nn.Module, input_shape: Sequence[int], groups: Sequence[ChannelGroup]
) -> CostModel:
    """Fit the cost model by removing one pruning unit of each group from a copy.

    It is exact for any architecture whose parameter dimensions are linear in the widths.
    """
    before = {name: tuple(p.shape) for name, p in network.named_parameters()}
    depth = max(len(shape) for shape in before.values())
    sizes = np.ones((len(before), depth))
    slopes = np.zeros((len(before), depth, len(groups)))
    for number, shape in enumerate(before.values()):
        sizes[number, : len(shape)] = shape
    for column, group in enumerate(groups):
        if group.width == group.blocks:
            continue  # it cannot get narrower
        twin = copy.deepcopy(network)
        with dependency_graph(twin, example_input(twin, input_shape)) as graph:
            remove_channels(graph, twin, group.layer, group.channels([0]))
        for number, (name, parameter) in enumerate(twin.named_parameters()):
            for axis, size in enumerate(parameter.shape):
                slopes[number, axis, column] = (before[name][axis] - size) / group.blocks
    per_parameter = macs_per_parameter(network, input_shape)
    factors = np.array([per_parameter[name] for name in before])
    widths = np.array([group.width for group in groups], np.int64)
    return CostModel(widths, sizes, slopes, factors)


def feasible(model: CostModel, limits: Sequence[Limit], widths_NG: Widths) -> NDArray[np.bool_]:
    """Return which candidates meet all limits on params and macs, [N]."""
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

    def fit(self, widths_NG: Widths) -> Widths:
        """Return the nearest allowed widths that are not wider."""
        rounded = widths_NG // self.multiple * self.multiple
        fitted: Widths = np.clip(rounded, self.narrowest, self.widest)
        return fitted


def bounds(groups: Sequence[ChannelGroup], min_width: int, round_to: int) -> Bounds:
    """Return the bounds of these groups."""
    widest = np.array([group.width for group in groups], np.int64)
    multiple = np.array([math.lcm(group.blocks, round_to) for group in groups], np.int64)
    least = -(-max(min_width, 1) // multiple) * multiple
    return Bounds(np.minimum(least, widest), widest, multiple)


def uniform(original: Sequence[int], ratio: float) -> Widths:
    """Return the widths after removing the same fraction of every group, rounded down."""
    return np.floor(np.array(original) * (1 - ratio) + 1e-9).astype(np.int64)


def lowest_first(groups: Sequence[ChannelGroup], scores: Sequence[Tensor], total: int) -> Widths:
    """Return the widths when the lowest scores go until at most `total` channels are left.

    At least one unit stays in each group.
    """
    best = [int(values.argmax()) for values in scores]
    pool = [
        (-float(value), group, unit)
        for group, values in enumerate(scores)
        for unit, value in enumerate(values)
        if unit != best[group]
    ]
    widths = np.array([group.blocks for group in groups], np.int64)
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
    """Return widths that meet all limits on params and macs and leave as little unused as possible.

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
            f"{limit.text} (at least {int(cost[limit.quantity][0]):,} {limit.quantity})"
            for limit in limits
            if cost[limit.quantity][0] > limit.bound
        ]
        raise UserError(
            f"prune.budget: {', '.join(failing)} cannot be met even at the least widths "
            "(prune.min_width)"
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


def meet_latency(
    limit: Limit,
    start: Widths,
    allowed: Bounds,
    narrowing: Callable[[float], Widths],
    measure: Callable[[Widths], float],
) -> Widths:
    """Return the first widths along the narrowing that meet a limit on latency when measured.

    They are found by bisection and measured once more, since a measurement can be off; if they fail
    then, the search goes on among narrower ones.

    Args:
        limit: on latency.
        start: no group gets wider than this.
        allowed: what widths may be.
        narrowing: widths for the fraction that is removed, from 0 to 1.
        measure: the milliseconds that the network takes when it is cut to widths.

    Raises:
        UserError: even the least widths take too long; it names the limit and what they take.
    """
    if measure(start) <= limit.bound:
        return start
    path = [start]
    for fraction in np.linspace(0, 1, 1 + int(allowed.widest.sum())):
        widths = np.minimum(start, allowed.fit(narrowing(float(fraction))))
        if (widths != path[-1]).any():
            path.append(widths)
    slow, fast = 0, len(path) - 1
    while True:
        while fast - slow > 1:
            middle = (slow + fast) // 2
            fits = measure(path[middle]) <= limit.bound
            slow, fast = (slow, middle) if fits else (middle, fast)
        taken = measure(path[fast])
        if taken <= limit.bound:
            return path[fast]
        if fast == len(path) - 1:
            raise UserError(
                f"prune.budget: {limit.text} (at least {taken:.3g}ms here) cannot be met even at the "
                "least widths (prune.min_width)"
            )
        slow, fast = fast, len(path) - 1
