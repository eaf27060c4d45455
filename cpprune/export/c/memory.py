"""Static memory plans: buffers that are never needed at the same time share memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16  # bytes


@dataclass(frozen=True)
class Buffer:
    """A buffer of a program of consecutive steps.

    Attributes:
        name: of the buffer.
        size: in bytes.
        first: step that writes it first.
        last: step that uses it last.
    """

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Return whether both are needed at the same step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """Where buffers lie.

    Attributes:
        offsets: of each buffer, in bytes.
        size: of the memory that holds all, in bytes.
    """

    offsets: dict[str, int]
    size: int


def plan(buffers: Sequence[Buffer]) -> Plan:
    """Return a plan for buffers: the largest first, each in the lowest gap that is free for it.

    Source: greedy by size of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
    Inference", 2020.
    """
    placed: list[tuple[int, Buffer]] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first, b.name)):
        offset = 0
        for start, other in sorted(placed, key=lambda entry: entry[0]):
            if not other.meets(buffer):
                continue
            if start - offset >= buffer.size:
                break
            offset = max(offset, _aligned(start + other.size))
        placed.append((offset, buffer))
    return Plan(
        {buffer.name: offset for offset, buffer in placed},
        max((offset + buffer.size for offset, buffer in placed), default=0),
    )


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
