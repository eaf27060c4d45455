"""Batches on the GPU before the step that needs them.

While step k runs, batch k + 1 is copied to the GPU or gathered there, on a stream of its own, and a
thread reads batch k + 2 into page-locked memory. The thread calls nothing of CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Positions = NDArray[np.int64]
Fetch = Callable[[Positions], Tensor]  # clips by their position


class Feed:
    """Two page-locked buffers and a stream, for one kind of rows.

    Args:
        device: the GPU.
        shape: of a row in the buffers.
        dtype: of the rows.
        rows: as many as a batch has at most.
        read: writes what belongs to n positions into [n, *shape] on the host.
        finish: makes the batch of what was read, on the GPU and on the feed's stream.
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
        """Yield the batch of each of these, in order, on the GPU.

        What is yielded may be used on the stream that is current then.
        """
        # What is gathered from was written on this stream.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with ThreadPoolExecutor(1) as reader:
            sent: Tensor | None = None
            reading = self._begin(reader, wanted, 0)
            for number in range(len(wanted)):
                rows = reading.result()
                upcoming = self._send(rows, number)
                reading = self._begin(reader, wanted, number + 1)
                if sent is not None:
                    yield self._hand_over(sent, number - 1)
                sent = upcoming
            if sent is not None:
                yield self._hand_over(sent, len(wanted) - 1)

    def _begin(
        self, reader: ThreadPoolExecutor, wanted: Sequence[Positions], number: int
    ) -> Future[Tensor]:
        if number >= len(wanted):
            return Future()
        self.ready[number % 2].synchronize()  # the buffer's last rows are on the GPU
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
        # Its memory is the other stream's: not to be used again before this one has read it.
        batch.record_stream(current)
        return batch
