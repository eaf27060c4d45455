"""Stopping a run early without losing anything: signals, a STOP file, a time limit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from cpprune.distributed.collectives import all_reduce_max
from cpprune.distributed.process_group import rank, world_size

# Ranks agree on whether to stop only at steps that are a multiple of this. On GPUs the answer is read at
# the next such step, so that no rank waits for its GPU.
EVERY_STEPS = 4


class Preemption:
    """Request to stop the run: a file STOP in its folder, the time limit, SIGTERM or SIGINT.

    A context manager that handles the signals, if asked, inside its block and restores their handlers at
    its end. A second SIGINT ends the process at once.

    Args:
        folder: folder of the run, in which the file STOP may appear.
        minutes: time limit; 0 is none.
        signals: whether to handle SIGTERM and SIGINT; only the main thread can.
        outer: request to stop several runs, of which this is one; it handles the signals.
    """

    def __init__(
        self, folder: Path, minutes: float, signals: bool, outer: Preemption | None = None
    ) -> None:
        self.file = folder / "STOP"
        self.deadline = time.monotonic() + 60 * minutes if minutes else None
        self.signals = signals and outer is None
        self.outer = outer
        self.reason = ""
        # The answer to the question before, on its way from the GPU, and when it has arrived.
        self._asked: tuple[torch.Tensor, torch.cuda.Event] | None = None
        self.handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Preemption:
        if self.signals and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.reason = signal.Signals(number).name

    def remove_stop_file(self) -> None:
        """Remove the STOP file that an earlier stop has left; called on rank 0."""
        self.file.unlink(missing_ok=True)

    def stop_reason(self, step: int, device: torch.device) -> str:
        """Return why all ranks stop after this step; empty to continue. A collective operation.

        Between steps, ranks on GPUs learn only what the question before has found; at step 0, which
        stands for the end of an epoch, all learn at once.

        Args:
            step: of the run, from 1.
            device: of this rank's tensors.
        """
        if world_size() > 1 and step % EVERY_STEPS:
            return ""
        self.look()
        if world_size() == 1:
            return self.reason
        requested = all_reduce_max(torch.full((1,), int(bool(self.reason)), device=device))
        before, self._asked = self._asked, None
        if step == 0 or device.type != "cuda":
            stops = bool(requested.item())
        else:
            answer = torch.empty(1, dtype=requested.dtype, pin_memory=True)
            answer.copy_(requested, non_blocking=True)
            self._asked = answer, torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._asked[1].record()
            if before is not None:
                before[1].synchronize()
            stops = before is not None and bool(before[0].item())
        return (self.reason or "another process") if stops else ""

    def look(self) -> None:
        """Take note of the first request that this rank sees."""
        if self.outer is not None:
            self.outer.look()
            self.reason = self.reason or self.outer.reason
        if not self.reason and rank() == 0 and self.file.exists():
            self.reason = str(self.file)
        if not self.reason and self.deadline is not None and time.monotonic() > self.deadline:
            self.reason = "the time limit"
