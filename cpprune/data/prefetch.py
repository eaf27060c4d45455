"""Prefetching of batches to the GPU.

While step k runs, batch k + 1 is copied to the GPU or gathered there, on a CUDA stream of its own, and a
thread reads batch k + 2 into page-locked memory. The thread makes no CUDA calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Positions = NDArray[np.int64]
Fetch = Callable[[Positions], Tensor]  # positions in a split → clips


class Prefetcher:
    """Reads batches ahead through two page-locked buffers and a CUDA stream.

    Args:
        device: the GPU.
        shape: shape of a row of the buffers.
        dtype: dtype of the buffers.
        rows: largest number of rows in a batch.
        read: writes the rows [n, *shape] of n positions into its second argument, on the host.
        finish: turns the rows, once on the GPU, into the batch; runs on the prefetcher's stream.
    """

    def __init__(
        self,
        device: torch.device,
        shape: Sequence[int],
        dtype: torch.dtype,
        rows: int,
        read: Callable[[Positions, Tensor], object],
        finish: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:
        self.device = device
        self.read, self.finish = read, finish
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.buffers = [torch.empty((rows, *shape), dtype=dtype, pin_memory=True) for _ in range(2)]
        self.ready = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def batches(self, wanted: Sequence[Positions]) -> Iterator[Tensor]:
        """Yield the batch of each array of positions, in order, on the GPU.

        A batch may be used on the stream that is current when it is yielded.
        """
        # Clips that `finish` gathers from were written on this stream.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with ThreadPoolExecutor(1) as reader:
            previous: Tensor | None = None
            reading = self._begin(reader, wanted, 0)
            for number in range(len(wanted)):
                rows = reading.result()
                upcoming = self._send(rows, number)
                reading = self._begin(reader, wanted, number + 1)
                if previous is not None:
                    yield self._hand_over(previous, number - 1)
                previous = upcoming
            if previous is not None:
                yield self._hand_over(previous, len(wanted) - 1)

    def _begin(
        self, reader: ThreadPoolExecutor, wanted: Sequence[Positions], number: int
    ) -> Future[Tensor]:
        if number >= len(wanted):
            return Future()
        self.ready[number % 2].synchronize()  # the buffer's earlier rows have reached the GPU
        return reader.submit(self._read, wanted[number], number)

    def _read(self, positions: Positions, number: int) -> Tensor:
        rows = self.buffers[number % 2][: len(positions)]
        self.read(positions, rows)
        return rows

    def _send(self, rows: Tensor, number: int) -> Tensor:
        with torch.cuda.stream(self.stream):
            batch = self.finish(rows.to(self.device, non_blocking=True))
            self.ready[number % 2].record(self.stream)
        return batch

    def _hand_over(self, batch: Tensor, number: int) -> Tensor:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(self.ready[number % 2])
        # The memory belongs to the other stream, which must not reuse it before this one has read it.
        batch.record_stream(current)
        return batch
