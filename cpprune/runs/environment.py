"""The environment of a run: packages, machine, command and memory."""

from __future__ import annotations

import platform
import resource
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from shards.credentials import recorded

PACKAGES = ("cpprune", "torch", "torchaudio", "torch-pruning", "accelerate", "numpy", "safetensors")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: on the GPU, or else on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB


def environment() -> dict[str, Any]:
    """Return the contents of environment.json."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": recorded(sys.argv),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
        "gpus": gpus,
        "threads": torch.get_num_threads(),
    }
