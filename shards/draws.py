"""Random numbers that every version of numpy draws alike.

They are made of the raw words of the Philox generator: numpy promises that stream for ever, and not
what the methods of its `Generator` make of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Of all that is drawn with `Stream`: changes with every change to what it returns. Version 1 were the
# methods of numpy's Generator.
VERSION = 2


class Stream:
    """A stream of random numbers that depends on the integers given alone.

    Args:
        *entropy: the integers, not negative.
    """

    def __init__(self, *entropy: int) -> None:
        self._philox = np.random.Philox(np.random.SeedSequence(entropy))

    def words(self, *shape: int) -> NDArray[np.uint64]:
        """Return 64 random bits each."""
        words: NDArray[np.uint64] = self._philox.random_raw(math.prod(shape))
        return words.reshape(shape)

    def uniform(self, *shape: int) -> Floats:
        """Return multiples of 2^−24 from [0, 1), which float32 holds exactly too."""
        return (self.words(*shape) >> np.uint64(40)).astype(np.float64) * 2.0**-24

    def integers(self, below: int | Ints, *shape: int) -> Ints:
        """Return integers from [0, below); one is likelier than another by `below` / 2^64 at most."""
        return (self.words(*shape) % np.asarray(below, np.uint64)).astype(np.int64)

    def permutation(self, count: int) -> Ints:
        """Return a permutation of `range(count)`: the stable argsort of as many words."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64, copy=False)

    def symmetric_beta(self, alpha: float, count: int) -> Floats:
        """Return numbers from [0, 1] that are distributed as Beta(alpha, alpha).

        Source: Bailey, "Polar Generation of Random Variates with the t-Distribution", Mathematics of
        Computation 62, 1994, for T = √(2α·(U^(−1/α) − 1))·cos 2πV, which is Student's t with 2α degrees
        of freedom; then ½·(1 + T/√(2α + T²)) is Beta(α, α).
        """
        # The middles of 2^52 parts of the unit interval: neither 0 nor 1.
        u, v = ((self.words(2, count) >> np.uint64(12)) + 0.5) * 2.0**-52
        cosine = np.cos(2 * np.pi * v)
        with np.errstate(divide="ignore", over="ignore"):
            ratio = np.expm1(-np.log(u) / alpha) * cosine**2  # T²/2α
            # ½·(1 − |T|/√(2α + T²)), without the difference of two numbers that are almost equal.
            smaller: Floats = 0.5 / ((1 + ratio) * (1 + 1 / np.sqrt(1 + 1 / ratio)))
        return np.where(cosine < 0, smaller, 1 - smaller)
