"""Random numbers that do not depend on the version of numpy.

They are computed from the raw output of the Philox generator, a stream that numpy guarantees to keep;
it gives no such guarantee for the methods of its `Generator`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Raise it whenever a method of `RandomStream` returns other numbers. Version 1 used numpy's Generator.
VERSION = 2


class RandomStream:
    """Stream of random numbers, a pure function of the seed integers.

    Args:
        *entropy: seed integers, not negative.
    """

    def __init__(self, *entropy: int) -> None:
        self._philox = np.random.Philox(np.random.SeedSequence(entropy))

    def words(self, *shape: int) -> NDArray[np.uint64]:
        """Return random 64-bit words."""
        words: NDArray[np.uint64] = self._philox.random_raw(math.prod(shape))
        return words.reshape(shape)

    def uniform(self, *shape: int) -> Floats:
        """Sample uniformly from the multiples of 2^−24 in [0, 1), which are exact in float32 too."""
        return (self.words(*shape) >> np.uint64(40)).astype(np.float64) * 2.0**-24

    def integers(self, below: int | Ints, *shape: int) -> Ints:
        """Sample integers from [0, below); their probabilities differ by a factor 1 + `below` / 2^64."""
        return (self.words(*shape) % np.asarray(below, np.uint64)).astype(np.int64)

    def permutation(self, count: int) -> Ints:
        """Return a permutation of `range(count)`: the stable argsort of `count` words."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64, copy=False)

    def symmetric_beta(self, alpha: float, count: int) -> Floats:
        """Sample from Beta(alpha, alpha).

        Source: Bailey, "Polar Generation of Random Variates with the t-Distribution", Mathematics of
        Computation 62, 1994: T = √(2α·(U^(−1/α) − 1))·cos 2πV follows Student's t distribution with 2α
        degrees of freedom; then ½·(1 + T/√(2α + T²)) follows Beta(α, α).
        """
        # Midpoints of 2^52 intervals: neither 0 nor 1.
        u, v = ((self.words(2, count) >> np.uint64(12)) + 0.5) * 2.0**-52
        cosine = np.cos(2 * np.pi * v)
        with np.errstate(divide="ignore", over="ignore"):
            ratio = np.expm1(-np.log(u) / alpha) * cosine**2  # T²/2α
            # ½·(1 − |T|/√(2α + T²)) without cancellation.
            smaller: Floats = 0.5 / ((1 + ratio) * (1 + 1 / np.sqrt(1 + 1 / ratio)))
        return np.where(cosine < 0, smaller, 1 - smaller)
