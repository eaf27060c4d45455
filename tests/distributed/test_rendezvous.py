"""Processes that a launcher starts again must not take the addresses of those before them."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from cpprune.distributed.rendezvous import agree

MINUTE = timedelta(seconds=60)


def names(store, world_size, timeout=MINUTE, ranks=None):
    """Let all ranks agree, each in a thread of its own, and return what each got."""
    found = {}

    def one(rank):
        try:
            found[rank] = agree(store, rank, world_size, timeout)
        except dist.DistStoreError as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(r,)) for r in ranks or range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in sorted(found)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_ranks_of_a_start_agree_and_no_other_start_shares_the_name(world_size):
    store, seen = dist.HashStore(), set()
    for _ in range(3):
        one, *others = names(store, world_size)
        assert all(other == one for other in others)
        assert one not in seen
        seen.add(one)


def test_another_number_of_ranks_agrees_over_what_the_last_left():
    store, seen = dist.HashStore(), set()
    for world_size in (3, 2, 4, 1, 2):
        found = set(names(store, world_size))
        assert len(found) == 1
        assert not found & seen
        seen |= found


@pytest.mark.parametrize("came", [[0], [1], [0, 2]])
def test_a_start_that_lacked_a_rank_does_not_mislead_the_next(came):
    store = dist.HashStore()
    first, *_ = names(store, 3, timedelta(seconds=0.2), came)
    assert isinstance(first, dist.DistStoreError)
    assert "did not come" in str(first)
    assert len(set(names(store, 3))) == 1
