"""Which sample comes when: pure functions of the seed, the epoch and the rank.

Everything here is the same with every version of numpy; see `shards.draws`.
"""

import numpy as np
from numpy.typing import NDArray

from shards.draws import Stream

Ids = NDArray[np.int64]


def permutation(num_samples: int, *entropy: int) -> Ids:
    """Returns a permutation of `range(num_samples)` that depends only on the integers given.

    It is the stable argsort of `num_samples` raw 64-bit words of a Philox generator whose key comes
    from `numpy.random.SeedSequence(entropy)`.
    """
    return Stream(*entropy).permutation(num_samples)


def epoch_order(num_samples: int, seed: int, epoch: int) -> Ids:
    """Returns the order in which the samples of one epoch are visited.

    Args:
        num_samples: how many samples the split has.
        seed: the run's seed, not negative.
        epoch: the epoch, counted from 0.

    Returns:
        int64 [num_samples], a permutation of `range(num_samples)`.
    """
    return permutation(num_samples, seed, epoch, num_samples)


def num_batches(num_samples: int, batch_size: int) -> int:
    """Returns how many batches an epoch has; the last one may be short."""
    return -(-num_samples // batch_size)


def batch_ids(order: Ids, batch: int, batch_size: int) -> Ids:
    """Returns the ids of a global batch: `order[batch * batch_size : (batch + 1) * batch_size]`."""
    return order[batch * batch_size : (batch + 1) * batch_size]


def rank_slice(ids: Ids, rank: int, world: int) -> Ids:
    """Returns the part of a global batch that `rank` of `world` processes.

    The slices are contiguous, differ by at most one in length, and give `ids` when they are
    concatenated in rank order.
    """
    return ids[len(ids) * rank // world : len(ids) * (rank + 1) // world]
