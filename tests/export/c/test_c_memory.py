"""Memory plans: buffers that are needed together never overlap, others share."""

import itertools

import numpy as np

from cpprune.export.c.memory import ALIGNMENT, Buffer, plan


def overlaps(one, other, offsets):
    return (
        offsets[one.name] < offsets[other.name] + other.size
        and offsets[other.name] < offsets[one.name] + one.size
    )


def test_buffers_that_are_needed_together_lie_apart():
    rng = np.random.default_rng(0)
    for _ in range(200):
        buffers = []
        for number in range(rng.integers(1, 12)):
            first, last = sorted(rng.integers(0, 10, 2).tolist())
            buffers.append(Buffer(f"b{number}", int(rng.integers(1, 50)), first, last))
        found = plan(buffers)
        for one, other in itertools.combinations(buffers, 2):
            together = set(range(one.first, one.last + 1)) & set(range(other.first, other.last + 1))
            assert not (together and overlaps(one, other, found.offsets))
        ends = [found.offsets[b.name] + b.size for b in buffers]
        needed = max(
            sum(b.size for b in buffers if b.first <= step <= b.last) for step in range(10)
        )
        assert needed <= found.size == max(ends)
        assert found.size <= sum(b.size + ALIGNMENT for b in buffers)
        assert all(offset % ALIGNMENT == 0 for offset in found.offsets.values())


def test_a_chain_needs_its_two_largest_neighbours():
    sizes = [160, 400, 240, 320, 32]
    chain = [Buffer(f"b{k}", size, k, k + 1) for k, size in enumerate(sizes)]
    assert plan(chain).size == 640
    assert plan([]).size == 0
