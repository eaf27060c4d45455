"""What the machine at hand can do at most, measured, for the other benchmarks to set figures beside."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def name(device: torch.device) -> str:
    """Say which machine this is."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{model}, {threads}, torch {torch.__version__}"


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    call: Callable[[], object], device: torch.device, rounds: int = 5, calls: int = 1
) -> float:
    """Return the shortest time that a call took; it is made once before, unmeasured."""
    call()
    wait(device)
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        wait(device)
        best = min(best, (time.perf_counter() - begin) / calls)
    return best


def side_by_side(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int = 7
) -> dict[str, float]:
    """Return the shortest time of each call, measured in turns, so that all see the same machine."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for label, call in calls.items():
            best[label] = min(best[label], seconds(call, device, rounds=1))
    return best


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large square matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device, rounds=5)


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second that are read and written by a copy that no cache holds."""
    count = 2**29 if device.type == "cuda" else 2**26
    a = torch.ones(count, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / seconds(lambda: b.copy_(a), device, rounds=5)


def report(device: torch.device) -> tuple[float, float, float]:
    """Print the machine and its limits; return float32's and bfloat16's FLOP/s and bytes/s."""
    if name(device).startswith("simulated"):
        raise SystemExit("a simulated GPU has no speed: measure on a real one")
    single, half = (matrix_rate(device, d) for d in (torch.float32, torch.bfloat16))
    bandwidth = copy_bandwidth(device)
    print(name(device))
    print(
        f"limits: {single / 1e12:.2f} TFLOP/s in float32, {half / 1e12:.2f} in bfloat16, "
        f"{bandwidth / 1e9:.0f} GB/s\n"
    )
    return single, half, bandwidth
