"""Ending a run early so that nothing is lost: signals, a STOP file, a time limit."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from cpprune.distributed.process_group import rank, world_size

# Ranks ask each other whether to stop at every step that is a multiple of this.
EVERY_STEPS = 4


class Stopping:
    """Whether the run has been asked to stop: by SIGTERM, SIGINT, a file STOP or the time limit.

    A second SIGINT ends the process at once. As a context it holds the signals, and gives them back.

    Args:
        folder: of the run, where the file STOP may appear.
        minutes: time limit; 0 is none.
        device: of this rank's tensors in collective calls.
    """

    def __init__(self, folder: Path, minutes: float, device: torch.device) -> None:
        self.file = folder / "STOP"
        self.until = time.monotonic() + 60 * minutes if minutes else None
        self.device = device
        self.why = ""
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.why and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.why = signal.Signals(number).name

    def forget_file(self) -> None:
        """Remove the file STOP of an earlier stop; for rank 0."""
        self.file.unlink(missing_ok=True)

    def asked(self, step: int) -> str:
        """Return why all ranks stop after this step; empty to go on. Every rank has to call it."""
        if world_size() > 1 and step % EVERY_STEPS:
            return ""
        if not self.why and rank() == 0 and self.file.exists():
            self.why = str(self.file)
        if not self.why and self.until is not None and time.monotonic() > self.until:
            self.why = "the time limit"
        if world_size() == 1:
            return self.why
        flag = torch.tensor([1 if self.why else 0], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return (self.why or "another process") if flag.item() else ""
