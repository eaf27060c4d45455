"""How far a step of a schedule goes: equal parts of the way, or along a curve of the parameter count."""

from __future__ import annotations

import numpy as np

from cpprune.pruning.allocation import Bounds, CostModel, Widths


def parameters_at(ramp: str, part: float, start: float, end: float) -> float:
    """Return the number of parameters after this part of the schedule.

    Args:
        ramp: linear; cubic: fast first, slow at the end (Zhu and Gupta, "To prune, or not to prune",
            2017); exponential: every step cuts the same share of what is left.
        part: from 0 to 1.
        start: parameters before the first step.
        end: parameters after the last.
    """
    if ramp == "linear":
        return start + (end - start) * part
    if ramp == "cubic":
        return end + (start - end) * (1 - part) ** 3
    if ramp == "exponential":
        return float(start * (end / start) ** part)
    raise ValueError(f"ramp={ramp!r}: a curve is one of linear, cubic, exponential")


def on_the_way(
    costs: CostModel, originals: Widths, end: Widths, allowed: Bounds, part: float, ramp: str
) -> Widths:
    """Return the widths after this part of the way from the original ones to the end.

    Args:
        costs: what widths cost.
        originals: widths at the start of the run, [G].
        end: widths after the last step, [G].
        allowed: what widths may be now.
        part: from 0 to 1.
        ramp: see `PruneConfig.ramp`.

    Returns:
        [G]: under `widths`, that part of the way in each group; else the widest on the way whose
        parameters are no more than the curve's. Never less than the end.
    """

    def way(so_far: float) -> Widths:
        widths = np.rint(originals - (originals - end) * so_far).astype(np.int64)
        between: Widths = np.maximum(end, allowed.fit(widths))
        return between

    if ramp == "widths":
        return way(part)
    start, least = costs.cost(np.stack((originals, end)))["params"]
    most = parameters_at(ramp, part, float(start), float(least)) + 1e-6
    low, high = 0.0, 1.0  # the end is on the curve
    for _ in range(40):
        middle = (low + high) / 2
        fits = costs.cost(way(middle)[None])["params"][0] <= most
        low, high = (low, middle) if fits else (middle, high)
    return way(high)
