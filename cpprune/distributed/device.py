"""The device that a process computes on."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU.

    For commands of one process; the device of a rank in a process group is its Accelerator's.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
