"""Stopping a run early without losing anything: signals, a STOP file, a time limit."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cpprune.distributed.collectives import all_reduce_max
from cpprune.distributed.process_group import rank, world_size

# Ranks agree on whether to stop only at steps that are a multiple of this.
EVERY_STEPS = 4


class Preemption:
    """Request to stop the run: SIGTERM, SIGINT, a file STOP in its folder, or the time limit.

    A context manager that handles the signals inside its block and restores their handlers at its end.
    A second SIGINT ends the process at once.

    Args:
        folder: folder of the run, in which the file STOP may appear.
        minutes: time limit; 0 is none.
        device: device of this rank's tensors in collective operations.
    """

    def __init__(self, folder: Path, minutes: float, device: torch.device) -> None:
        self.file = folder / "STOP"
        self.deadline = time.monotonic() + 60 * minutes if minutes else None
        self.device = device
        self.reason = ""
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
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

    def stop_reason(self, step: int) -> str:
        """Return why all ranks stop after this step; empty to continue. A collective operation."""
        if world_size() > 1 and step % EVERY_STEPS:
            return ""
        if not self.reason and rank() == 0 and self.file.exists():
            self.reason = str(self.file)
        if not self.reason and self.deadline is not None and time.monotonic() > self.deadline:
            self.reason = "the time limit"
        if world_size() == 1:
            return self.reason
        requested = all_reduce_max(torch.tensor([int(bool(self.reason))], device=self.device))
        return (self.reason or "another process") if requested.item() else ""
