"""How the steps of a schedule approach its end: by equal steps of width, or along a parameter curve."""

from __future__ import annotations

import numpy as np

from cpprune.pruning.allocation import Bounds
from cpprune.pruning.costs import CostModel, Widths


def parameters_at(ramp: str, fraction: float, start: float, end: float) -> float:
    """Return the number of parameters after this fraction of the schedule.

    Args:
        ramp: linear; cubic: fast first, slow at the end (Zhu and Gupta, "To prune, or not to prune",
            2017); exponential: every step cuts the same share of what is left.
        fraction: from 0 to 1.
        start: parameters before the first step.
        end: parameters after the last.
    """
    if ramp == "linear":
        return start + (end - start) * fraction
    if ramp == "cubic":
        return end + (start - end) * (1 - fraction) ** 3
    if ramp == "exponential":
        return float(start * (end / start) ** fraction)
    raise ValueError(f"ramp={ramp!r}: a curve is one of linear, cubic, exponential")


def scheduled_widths(
    costs: CostModel, originals: Widths, end: Widths, allowed: Bounds, fraction: float, ramp: str
) -> Widths:
    """Return the widths after this fraction of the way from the original ones to the end.

    Args:
        costs: what widths cost.
        originals: widths at the start of the run, [G].
        end: widths after the last step, [G].
        allowed: what widths may be now.
        fraction: from 0 to 1.
        ramp: see `PruneConfig.ramp`.

    Returns:
        [G]. For `widths`, the interpolated widths; else the largest of them whose parameters do
        not exceed the curve. Never below the end.
    """

    def between(fraction: float) -> Widths:
        widths = np.rint(originals - (originals - end) * fraction).astype(np.int64)
        fitted: Widths = np.maximum(end, allowed.fit(widths))
        return fitted

    if ramp == "widths":
        return between(fraction)
    start, least = costs.cost(np.stack((originals, end)))["params"]
    most = parameters_at(ramp, fraction, float(start), float(least)) + 1e-6
    low, high = 0.0, 1.0  # the end is on the curve
    for _ in range(40):
        middle = (low + high) / 2
        fits = costs.cost(between(middle)[None])["params"][0] <= most
        low, high = (low, middle) if fits else (middle, high)
    return between(high)
