"""What saving costs: a checkpoint of the big CP-ResNet with Adam's state, against a training step.

python benchmarks/checkpoints.py --batch 256
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from cpprune import build_model
from cpprune.distributed.device import default_device
from cpprune.runs import checkpoint
from cpprune.runs.checkpoint import Progress, Tensors
from cpprune.runs.identity import RunIdentity
from cpprune.training.config import OptimConfig
from cpprune.training.optim import build_optimizer
from cpprune.training.optimizer_state import read_moments


def milliseconds(do: Callable[[], object], times: int) -> float:
    """Return the median of so many calls."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        do()
        taken.append(1000 * (time.perf_counter() - begin))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    batch = parser.parse_args().batch
    device = default_device()
    network = build_model("cp_resnet").to(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(OptimConfig(), list(network.parameters()))
    x = torch.randn(batch, 1, 256, 44, device=device)
    labels = torch.randint(10, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = functional.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    step()
    one_step = milliseconds(step, 5)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        number, identity = iter(range(10_000)), RunIdentity({}, None, "", None)

        def save() -> None:
            moments = read_moments(network, optimizer)
            tensors = Tensors(network.state_dict(), moments, {})
            progress = Progress(step=next(number))
            checkpoint.save(Path(folder), 2, progress, identity, tensors, None)

        saving = milliseconds(save, 20)
        last = checkpoint.list_checkpoints(Path(folder))[-1]
        size = sum(path.stat().st_size for path in last.iterdir())
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{where}, {os.cpu_count()} cores")
    print(f"a checkpoint ({size / 1e6:.1f} MB, flushed to disk): {saving:.0f} ms")
    print(f"a training step of {batch} clips in bf16: {one_step:.0f} ms")
    print(f"saving once an epoch of 545 steps costs {saving / (545 * one_step):.3%}")


if __name__ == "__main__":
    main()
