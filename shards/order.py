"""Order of the samples: pure functions of the seed, the epoch and the rank.

They do not depend on the version of numpy; see `shards.random_stream`.
"""

import numpy as np
from numpy.typing import NDArray

from shards.random_stream import RandomStream

Ids = NDArray[np.int64]


def permutation(num_samples: int, *entropy: int) -> Ids:
    """Returns a permutation of `range(num_samples)` that depends only on the integers `entropy`.

    It is the stable argsort of `num_samples` raw 64-bit words of a Philox generator whose key comes
    from `numpy.random.SeedSequence(entropy)`.
    """
    return RandomStream(*entropy).permutation(num_samples)


def epoch_order(num_samples: int, seed: int, epoch: int) -> Ids:
    """Returns the order of the samples in one epoch.

    Args:
        num_samples: size of the split.
        seed: seed of the run, not negative.
        epoch: counted from 0.

    Returns:
        int64 [num_samples], a permutation of `range(num_samples)`.
    """
    return permutation(num_samples, seed, epoch, num_samples)


def num_batches(num_samples: int, batch_size: int) -> int:
    """Returns the number of batches in an epoch; the last one may be short."""
    return -(-num_samples // batch_size)


def batch_ids(order: Ids, batch: int, batch_size: int) -> Ids:
    """Returns the ids of a global batch: `order[batch * batch_size : (batch + 1) * batch_size]`."""
    return order[batch * batch_size : (batch + 1) * batch_size]


def rank_slice(ids: Ids, rank: int, world: int) -> Ids:
    """Returns the slice of a global batch that rank `rank` of `world` trains on.

    The slices are contiguous, their lengths differ by at most one, and in rank order they concatenate to
    `ids`.
    """
    return ids[len(ids) * rank // world : len(ids) * (rank + 1) // world]
