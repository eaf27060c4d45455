"""A step on a GPU, recorded once as a CUDA graph and replayed from then on.

A graph reads and writes the same memory whenever it is replayed. So what differs from step to step comes
in tensors, which are copied to where the graph reads them, and what is kept is changed in place.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shards.errors import InputError

Tensors = Mapping[str, Tensor]
Run = Callable[[Tensors, int], tuple[Tensor, ...]]
Record = Callable[
    [Callable[[], tuple[Tensor, ...]]], tuple[Callable[[], object], tuple[Tensor, ...]]
]


def recorder(compiled: str, device: torch.device) -> Record | None:
    """Return what records a step, or None where steps are only taken.

    Args:
        compiled: `train.compile`.
        device: of the step.
    """
    if compiled != "graph" or device.type != "cuda":
        return None
    if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        # Nothing can be recorded on the default stream, and what takes part in a graph, such as the
        # hooks of DistributedDataParallel, has to have been made on the stream that is recorded.
        own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        own.wait_stream(torch.cuda.current_stream(device))
        torch.cuda.set_stream(own)
    # A few steps are taken before one is recorded: the optimizer need not wonder.
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    pool = torch.cuda.graph_pool_handle()

    def record(
        run: Callable[[], tuple[Tensor, ...]],
    ) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(device)
        try:
            # Other threads, such as NCCL's watchdog, may do as they like meanwhile.
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                outputs = run()
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a failed capture fails too
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            reason = str(cause).strip().splitlines()[0]
            raise InputError(
                f"train.compile=graph: a step of this network cannot be captured ({reason}); use "
                "train.compile=auto"
            ) from error
        return graph.replay, outputs

    return record


@dataclass(frozen=True)
class _Recording:
    inputs: Tensors
    replay: Callable[[], object]
    outputs: tuple[Tensor, ...]


class Captured:
    """A function of tensors that is recorded for each kind of its inputs, after a few calls.

    A call is of the same kind as another if the number and the names and shapes of the tensors are the
    same. The first calls of a kind are plain ones: they compile, and make what is kept.

    Args:
        run: the function. It changes in place what it keeps, waits for nothing on the host, and takes
            nothing from it that differs from call to call.
        device: where it runs, and where inputs are brought.
        record: from `recorder`; None never records.
        plain_calls: plain calls of a kind before it is recorded.
    """

    def __init__(
        self, run: Run, device: torch.device, record: Record | None, plain_calls: int
    ) -> None:
        self.run, self.device = run, device
        self.record, self.plain_calls = record, plain_calls
        self._calls: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}

    @property
    def recorded(self) -> int:
        """Return how many kinds of call are replayed by now."""
        return len(self._recordings)

    def forget(self) -> None:
        """Let go of what was recorded: NCCL does not leave a group that a graph still speaks to."""
        if self._recordings and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._recordings.clear()
        self._calls.clear()

    def __call__(self, inputs: Tensors, number: int) -> tuple[Tensor, ...]:
        """Return what the function returns, in memory of its own."""
        kind = number, *((name, tensor.shape) for name, tensor in inputs.items())
        self._calls[kind] += 1
        if self.record is None or self._calls[kind] <= self.plain_calls:
            return self.run(self._brought(inputs), number)
        recording = self._recordings.get(kind)
        if recording is None:
            recording = self._recordings[kind] = self._recorded(self.record, inputs, number)
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(tensor, non_blocking=True)
        recording.replay()
        return tuple(output.clone() for output in recording.outputs)

    def _brought(self, inputs: Tensors) -> dict[str, Any]:
        return {name: t.to(self.device, non_blocking=True) for name, t in inputs.items()}

    def _recorded(self, record: Record, inputs: Tensors, number: int) -> _Recording:
        own = {name: tensor.clone() for name, tensor in self._brought(inputs).items()}
        return _Recording(own, *record(lambda: self.run(own, number)))
