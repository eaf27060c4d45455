"""The kernels of a training step of CP-ResNet big on a GPU: how many, and which take the time.

    python benchmarks/kernels.py [--batch 256] [--compile off capture inductor graph]
    python benchmarks/kernels.py --simulated [--processes 1 2] [--compile off graph]

torch's profiler counts what runs on the GPU during a few steps on clips that lie there. "busy" is the
part of a step's time in which a kernel runs; the rest is waiting for the host to launch the next one.

`--simulated` needs no GPU and measures no time: it counts what one step asks of the simulated GPU of
tests/simulated_gpu, by part of the step. Under `capture` and `graph` that is what is launched beside the
CUDA graph; what Inductor makes of a network cannot be counted there.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
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
from cpprune.training.engine import PLAIN_STEPS, PLAIN_STEPS_OF_SEVERAL
from cpprune.training.loop import Trainer

MODES = ["off", "capture", "inductor", "graph"]
SIMULATED = Path(__file__).parents[1] / "tests/simulated_gpu"
BUILD = runpy.run_path(str(SIMULATED / "build.py"))  # another module has its name


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


def count(folder: Path, batch: int, precision: str, compiled: str, processes: int) -> str:
    """Return the rows of a table: what one step asks of simulated GPUs, one a process."""
    plain = PLAIN_STEPS if processes == 1 else PLAIN_STEPS_OF_SEVERAL
    number = plain + 1 if compiled in ("capture", "graph") else 2  # the first steps allocate state
    dataset = folder / f"dataset-{number}"
    if not dataset.exists():
        make_dataset(dataset, batch * (number + 2), validation=64)
    devices = ",".join(map(str, range(processes)))
    simulated = BUILD["environment"](BUILD["build"](folder / "simulated"))
    simulated |= {"CUDA_VISIBLE_DEVICES": devices, "SIMULATED_GPUS": str(processes)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    settings: dict[str, object] = {"data.path": dataset, "run": folder / f"{compiled}-{processes}"}
    settings |= {"train.batch_size": batch, "train.precision": precision}
    settings |= {"train.compile": compiled, "augment.mixstyle_p": 1}
    done = subprocess.run(
        [
            *(sys.executable, *launcher, "--", str(SIMULATED / "count_step.py"), str(number)),
            *(f"--{key}={value}" for key, value in settings.items()),
        ],
        env={**os.environ, **simulated},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the step cannot be counted:\n{done.stderr[-3000:]}")
    parts: dict[str, Counter[str]] = {}
    for operator in json.loads(done.stdout.splitlines()[-1])["operators"]:
        for part in (operator["part"] or "between steps", "all"):
            counts = parts.setdefault(part, Counter())
            counts["operators"] += 1
            counts["kernels"] += operator["kernels"]
            counts["collectives"] += operator["name"].startswith("c10d.")
            counts["bytes"] += operator["bytes"]
    return "\n".join(
        f"| {processes} | {compiled} | {part} | {found['operators']} | {found['kernels']} | "
        f"{found['collectives']} | {found['bytes'] / 1e6:,.0f} |"
        for part, found in sorted(parts.items(), key=lambda item: item[0] == "all")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--compile", nargs="+", choices=MODES)
    parser.add_argument("--simulated", action="store_true", help="count on a simulated GPU")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="if simulated")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--most", type=int, default=25, help="kernels that are shown")
    arguments = parser.parse_args()
    if arguments.simulated:
        how = arguments.compile or ["off", "capture"]
        if reason := BUILD["why_not"]():
            parser.error(f"the simulated GPU {reason}")
        if "inductor" in how:
            parser.error("what Inductor compiles cannot be counted on the simulated GPU")
        print(
            f"one step of big, {arguments.precision}, batch {arguments.batch}: counted, not timed\n"
        )
        print("| processes | compile | part | operators | kernels | collectives | MB |")
        print("|---|---|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for compiled in how:
                for processes in arguments.processes:
                    work = Path(folder), arguments.batch, arguments.precision, compiled
                    print(count(*work, processes), flush=True)
        return
    if not torch.cuda.is_available():
        print("needs a GPU: there are no kernels to count here; --simulated counts without one")
        return
    limits.report(torch.device("cuda"))
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder, "dataset")
        make_dataset(dataset, arguments.batch, validation=64)
        for compiled in arguments.compile or MODES:
            print(f"compile {compiled}, {arguments.precision}, batch {arguments.batch}: ", end="")
            run = Path(folder, compiled)
            trainer = make(dataset, run, arguments.batch, arguments.precision, compiled)
            measure(trainer, arguments.steps, arguments.most)
            process_group.finish()


if __name__ == "__main__":
    main()
