"""The environment of a run: packages, machine, command and memory."""

from __future__ import annotations

import platform
import resource
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from shards.credentials import recorded

PACKAGES = ("cpprune", "torch", "torchaudio", "torch-pruning", "accelerate", "numpy", "safetensors")


@dataclass(frozen=True)
class Environment:
    """environment.json."""

    command: list[object] | None = None
    host: object = "unknown"
    platform: object = "unknown"
    python: object = "unknown"
    packages: dict[str, object] | None = None
    gpus: list[object] | None = None
    threads: object = "unknown"


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: on the GPU, or else on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB


def environment() -> Environment:
    """Return the environment of this process."""
    versions: dict[str, object] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    gpus = map(torch.cuda.get_device_name, range(torch.cuda.device_count()))
    return Environment(
        command=recorded(sys.argv),
        host=socket.gethostname(),
        platform=platform.platform(),
        python=platform.python_version(),
        packages=versions,
        gpus=list(gpus),
        threads=torch.get_num_threads(),
    )
