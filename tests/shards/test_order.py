import subprocess
import sys

import numpy as np
import pytest

from shards.order import batch_ids, epoch_order, num_batches, rank_slice


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_an_epoch_visits_every_sample_once(count: int) -> None:
    order = epoch_order(count, seed=1, epoch=2)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))


def test_seed_and_epoch_change_the_order() -> None:
    orders = [epoch_order(100, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(100, 1, 0).tolist() == orders[2]


def test_the_order_never_changes() -> None:
    # Computed once. If it changes, runs can no longer be repeated or resumed.
    assert epoch_order(230350, 0, 0)[:6].tolist() == GOLDEN_LARGE
    assert epoch_order(10, 7, 3).tolist() == GOLDEN_SMALL


GOLDEN_LARGE = [185153, 4418, 214537, 13035, 131677, 48130]
GOLDEN_SMALL = [1, 4, 3, 2, 7, 5, 8, 0, 6, 9]


@pytest.mark.parametrize("world", [1, 2, 3, 7, 8, 64])
@pytest.mark.parametrize("count", [0, 1, 5, 64, 257])
def test_slices_partition_the_batch(count: int, world: int) -> None:
    ids = epoch_order(count, 0, 0)
    slices = [rank_slice(ids, rank, world) for rank in range(world)]
    assert np.concatenate(slices).tolist() == ids.tolist()
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_batches_partition_the_epoch() -> None:
    order = epoch_order(1003, 0, 0)
    batches = [batch_ids(order, batch, 100) for batch in range(num_batches(1003, 100))]
    assert [len(batch) for batch in batches] == [100] * 10 + [3]
    assert np.concatenate(batches).tolist() == order.tolist()


def test_importing_is_cheap() -> None:
    code = (
        "import sys, shards, shards.order, shards.cli\n"
        "heavy = {'torch', 'pyarrow', 'soundfile', 'soxr', 'rich'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
