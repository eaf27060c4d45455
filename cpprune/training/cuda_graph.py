"""Training steps captured as CUDA graphs and replayed.

A graph reads and writes the same memory at every replay. Whatever differs from step to step is therefore
copied into the tensors that the graph reads, and state is changed in place.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.errors import UserError

Tensors = Mapping[str, Tensor]
Run = Callable[[Tensors, int], tuple[Tensor, ...]]
Record = Callable[
    [Callable[[], tuple[Tensor, ...]]], tuple[Callable[[], object], tuple[Tensor, ...]]
]


def recorder(device: torch.device) -> Record | None:
    """Return a function that captures a step on a device, or None where it is not a GPU."""
    if device.type != "cuda":
        return None
    if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        # Nothing can be recorded on the default stream, and what takes part in a graph, such as the
        # hooks of DistributedDataParallel, has to have been made on the stream that is recorded.
        own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        own.wait_stream(torch.cuda.current_stream(device))
        torch.cuda.set_stream(own)
    # The optimizer warns about steps before the first capture, which are intended.
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    pool = torch.cuda.graph_pool_handle()

    def record(
        run: Callable[[], tuple[Tensor, ...]],
    ) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(device)
        try:
            # Other threads, such as NCCL's watchdog, may call CUDA meanwhile.
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                outputs = run()
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a failed capture fails too
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            reason = str(cause).strip().splitlines()[0]
            raise UserError(
                f"train.compile: a step of this network cannot be captured as a CUDA graph ({reason}); "
                "set train.compile=off or inductor"
            ) from error
        return graph.replay, outputs

    return record


def return_to(stream: torch.cuda.Stream) -> None:
    """Make a stream the current one, to go on after what the current one does."""
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    torch.cuda.set_stream(stream)


@dataclass(frozen=True)
class _Recording:
    inputs: Tensors
    replay: Callable[[], object]
    outputs: tuple[Tensor, ...]


class Captured:
    """A function of tensors that is captured for each kind of inputs, after a few plain calls.

    Two calls are of the same kind if the number and the names and shapes of the tensors are the same.
    The first calls of a kind are plain: they compile kernels and allocate state.

    Args:
        run: the function. It changes its state in place, does not wait for the device, and uses no
            host values that differ from call to call.
        device: where it runs; inputs are copied there.
        record: from `recorder`; None never captures.
        plain_calls: number of plain calls of a kind before it is captured.
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
        """Return the number of captured kinds."""
        return len(self._recordings)

    def forget(self) -> None:
        """Release captured graphs: NCCL does not leave a group that a graph still uses."""
        if self._recordings and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._recordings.clear()
        self._calls.clear()

    def __call__(self, inputs: Tensors, number: int) -> tuple[Tensor, ...]:
        """Call or replay the function; the results are in memory of their own."""
        kind = number, *((name, tensor.shape) for name, tensor in inputs.items())
        self._calls[kind] += 1
        if self.record is None or self._calls[kind] <= self.plain_calls:
            return self.run(self._brought(inputs), number)
        recording = self._recordings.get(kind)
        if recording is None:
            recording = self._recordings[kind] = self._recorded(self.record, inputs, number)
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(self._pinned(tensor), non_blocking=True)
        recording.replay()
        return tuple(output.clone() for output in recording.outputs)

    def _brought(self, inputs: Tensors) -> dict[str, Tensor]:
        return {
            name: self._pinned(tensor).to(self.device, non_blocking=True)
            for name, tensor in inputs.items()
        }

    def _pinned(self, tensor: Tensor) -> Tensor:
        # A copy from pageable memory may wait for the device.
        return tensor.pin_memory() if self.device.type == "cuda" and tensor.is_cpu else tensor

    def _recorded(self, record: Record, inputs: Tensors, number: int) -> _Recording:
        own = {name: tensor.clone() for name, tensor in self._brought(inputs).items()}
        return _Recording(own, *record(lambda: self.run(own, number)))
