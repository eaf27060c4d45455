"""Statistics over seeds: mean and deviation, paired tests and their correction."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from shards.errors import UserError


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None of a single value) and the values."""

    mean: float
    deviation: float | None
    values: list[float]


@dataclass(frozen=True)
class Difference:
    """Mean and sample standard deviation of one − other, and p of the two-sided paired t-test.

    p is None where the difference is the same for every seed; `p_holm` has Holm's correction.
    """

    difference: float
    deviation: float
    p: float | None
    p_holm: float | None = None


def spread(values: Sequence[float]) -> Spread:
    """Return mean and deviation of values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, list(values))


def paired_test(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Compare two series of values, in the same order of seeds, by a paired t-test.

    Args:
        one: at least two values.
        other: as many.

    Raises:
        UserError: scipy is not installed.
    """
    if find_spec("scipy") is None:
        raise UserError("paired tests over seeds need scipy: pip install 'cpprune[report]'")
    from scipy import stats

    change = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    varies = not np.allclose(change, change[0], rtol=1e-12, atol=1e-15)
    p = float(stats.ttest_1samp(change, 0).pvalue) if varies else None
    return Difference(float(change.mean()), float(change.std(ddof=1)), p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values with Holm's correction for multiple tests.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
    Statistics 6, 1979.

    Args:
        p_values: None where there was no test; those stay None and are not counted.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[place] = least
    return corrected
