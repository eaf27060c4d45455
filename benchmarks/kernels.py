"""The kernels of a training step of CP-ResNet big on a GPU: how many, and which take the time.

    python benchmarks/kernels.py [--batch 256] [--compile off auto graph]

torch's profiler counts what runs on the GPU during a few steps on clips that lie there. "busy" is the
part of a step's time in which a kernel runs; the rest is waiting for the host to launch the next one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import limits
import torch
from reader import make_dataset
from step import make
from torch.profiler import ProfilerActivity, profile

from cpprune.data.loader import Batch
from cpprune.distributed import process_group
from cpprune.training.engine import PLAIN_STEPS
from cpprune.training.loop import Trainer


def measure(trainer: Trainer, steps: int, most: int) -> None:
    """Print the kernels of a step, and those that take the most time."""
    device = trainer.device
    read = next(iter(trainer.batches.epoch(0)))
    batch = Batch(0, read.ids, read.start, read.stop, read.clips.to(device))
    for _ in range(PLAIN_STEPS + 2):
        trainer.step(0, batch, 0)
    limits.wait(device)
    begin = time.perf_counter()
    for _ in range(steps):
        trainer.step(0, batch, 0)
    limits.wait(device)
    took = (time.perf_counter() - begin) / steps
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            trainer.step(0, batch, 0)
        limits.wait(device)
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in profiler.events():
        if str(event.device_type).endswith("CUDA"):
            times[event.name] += event.time_range.elapsed_us() / steps
            counts[event.name] += 1
    busy = sum(times.values()) * 1e-6
    print(
        f"{sum(counts.values()) / steps:.0f} kernels and copies a step, {took * 1e3:.2f} ms, "
        f"{busy * 1e3:.2f} ms of it busy ({busy / took:.0%})\n"
    )
    print("| kernel | a step | µs a step |\n|---|---|---|")
    for name, spent in times.most_common(most):
        print(f"| {name[:90]} | {counts[name] / steps:.0f} | {spent:.0f} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--compile", nargs="+", default=["off", "auto", "graph"])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--most", type=int, default=25, help="kernels that are shown")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a GPU: there are no kernels to count here")
        return
    limits.report(torch.device("cuda"))
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder, "dataset")
        make_dataset(dataset, arguments.batch, validation=64)
        for compiled in arguments.compile:
            print(f"compile {compiled}, {arguments.precision}, batch {arguments.batch}: ", end="")
            run = Path(folder, compiled)
            trainer = make(dataset, run, arguments.batch, arguments.precision, compiled)
            measure(trainer, arguments.steps, arguments.most)
            process_group.finish()


if __name__ == "__main__":
    main()
