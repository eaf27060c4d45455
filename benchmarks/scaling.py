"""Scaling of training over processes: measurements, and a model of many GPUs fitted to them.

    python benchmarks/scaling.py [--processes 1 2 4]

Measures whole steps at one global batch size, and all-reduces of several sizes among the same processes.
Latency and bandwidth of a ring are fitted to the all-reduces:

    seconds(n, bytes) = 2 (n − 1) · latency + 2 (n − 1) / n · bytes / bandwidth,

The second table is that model, not a measurement: the time of a step if each process computes as fast as
one does here, over this machine's network. A step sends the gradient once, and with global batch
statistics two short messages per layer. Its last column is what a node of eight has to read if clips are
not kept in memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

SIZES = [2**k for k in range(8, 23, 2)]  # floats


def one(dataset: Path, run: Path, batch: int, own_statistics: bool) -> None:
    """Measure as one of the processes; rank 0 prints."""
    import torch
    import torch.distributed as dist
    from torch import nn

    from cpprune.config import RunConfig
    from cpprune.data.config import DataConfig
    from cpprune.distributed import process_group
    from cpprune.evaluation.complexity import count_parameters
    from cpprune.training.config import TrainConfig
    from cpprune.training.loop import Trainer
    from shards.launcher import read_launch

    accelerator = process_group.start(read_launch(), "no")
    precision: Any = "bf16"
    config = RunConfig(
        run=str(run),
        data=DataConfig(path=str(dataset)),
        train=TrainConfig(
            batch_size=batch, precision=precision, epochs=1000, global_batch_norm=not own_statistics
        ),
    )
    trainer = Trainer(config, frozenset(), accelerator, ExitStack())
    trainer.train_epoch(0)
    begin = time.perf_counter()
    trainer.train_epoch(1)
    found: dict[str, Any] = {"step": (time.perf_counter() - begin) / len(trainer.batches)}
    network = trainer.model.network
    found["parameters"] = count_parameters(network)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    found["messages"] = 0 if own_statistics else 2 * norms
    found["clip_bytes"] = trainer.dataset.dtype.itemsize * math.prod(trainer.dataset.shape)
    found["all_reduce"] = []
    for size in SIZES if process_group.world_size() > 1 else []:
        values = torch.ones(size, device=accelerator.device)
        times = []
        for _ in range(20):
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(values)
            if values.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        found["all_reduce"].append([4 * size, min(times)])
    if process_group.rank() == 0:
        print(json.dumps(found), flush=True)
    process_group.finish()


def measure(processes: int, dataset: Path, run: Path, more: list[str]) -> dict[str, Any]:
    """Start some processes and return what rank 0 printed."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc_per_node", str(processes), "--", __file__, "--worker", str(dataset)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, "--run", str(run), *more],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def fit(rows: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Fit latency and bandwidth to (processes, bytes, seconds), in relative error."""
    import numpy as np
    from scipy.optimize import nnls

    a = np.array([[2 * (n - 1), 2 * (n - 1) / n * size] for n, size, _ in rows])
    seconds = np.array([took for _, _, took in rows])
    (latency, inverse), _ = nnls(a / seconds[:, None], np.ones(len(rows)))
    return float(latency), 1 / max(float(inverse), 1e-18)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--clips", type=int, default=1024)
    parser.add_argument(
        "--own-statistics", action="store_true", help="train.global_batch_norm false"
    )
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        one(arguments.worker, arguments.run, arguments.batch, arguments.own_statistics)
        return

    import limits
    import torch
    from reader import make_dataset

    from cpprune.distributed.device import default_device

    limits.report(default_device())
    if torch.cuda.is_available():
        there = torch.cuda.device_count()
        arguments.processes = [n for n in arguments.processes if n <= there]
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder, "dataset")
        make_dataset(dataset, arguments.clips, validation=64)
        more = ["--batch", str(arguments.batch)]
        more += ["--own-statistics"] if arguments.own_statistics else []
        found = {n: measure(n, dataset, Path(folder, str(n)), more) for n in arguments.processes}
    print(f"batch {arguments.batch}, one thread a process\n")
    print("| processes | step, ms | speed-up |\n|---|---|---|")
    first = found[arguments.processes[0]]["step"]
    for n, figures in found.items():
        print(f"| {n} | {figures['step'] * 1e3:.1f} | {first / figures['step']:.2f} |")
    rows = [(n, size, took) for n, f in found.items() for size, took in f["all_reduce"]]
    if not rows or 1 not in found:
        return
    latency, bandwidth = fit(rows)
    print(f"\nall-reduce: latency {latency * 1e6:.0f} µs, bandwidth {bandwidth / 1e9:.2f} GB/s\n")
    print("| processes | modelled step, ms | gradient | statistics | efficiency | GB/s a node |")
    print("|---|---|---|---|---|---|")
    one_alone = found[1]
    for n in (8, 16, 64, 256, 1024):
        hop = 2 * (n - 1) * latency
        gradient = hop + 2 * (n - 1) / n * 4 * one_alone["parameters"] / bandwidth
        statistics = one_alone["messages"] * hop
        # The batch grows with the processes: each keeps its rows.
        step = first + gradient + statistics
        read = 8 * arguments.batch * one_alone["clip_bytes"] / step / 1e9
        row = f"{n} | {step * 1e3:.1f} | {gradient / step:.1%} | {statistics / step:.1%}"
        print(f"| {row} | {first / step:.1%} | {read:.2f} |")


if __name__ == "__main__":
    main()
