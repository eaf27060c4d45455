"""Whole epochs of CP-ResNet big at the size of TAU 2022 Mobile, from tar shards to updated weights.

    python benchmarks/epoch.py                       # 139,620 clips on a GPU, 2,048 on a CPU
    python benchmarks/epoch.py --compile capture graph --batch 256 1024

Clips are noise. The first epoch, which loads the clips and compiles, is shown apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import limits
import torch
from reader import make_dataset
from step import make

from cpprune.distributed import process_group

TAU = 139_620  # clips of one second that an epoch of the challenge's full training split has


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=TAU if cuda else 2048)
    parser.add_argument("--batch", type=int, nargs="+", default=[256] if cuda else [64])
    choices = ["auto", "off", "capture", "inductor", "graph"]
    parser.add_argument("--compile", nargs="+", default=["auto"], choices=choices)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--epochs", type=int, default=3 if cuda else 1)
    arguments = parser.parse_args()
    limits.report(torch.device("cuda" if cuda else "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder, "dataset"), arguments.clips, validation=64)
        print(
            "| compile | batch | first epoch, s | epoch, s | clips/s | 50 epochs, s |\n"
            "|---|---|---|---|---|---|"
        )
        for compiled, batch in product(arguments.compile, arguments.batch):
            run = Path(folder, f"{compiled}-{batch}")
            how = arguments.precision, compiled
            trainer = make(Path(folder, "dataset"), run, batch, *how)
            times = []
            for epoch in range(arguments.epochs + 1):
                begin = time.perf_counter()
                trainer.train_epoch(epoch)
                limits.wait(trainer.device)
                times.append(time.perf_counter() - begin)
            best = min(times[1:])
            speed = arguments.clips / best
            row = f"{compiled} | {batch} | {times[0]:.1f} | {best:.2f} | {speed:,.0f}"
            print(f"| {row} | {50 * best:.0f} |", flush=True)
            process_group.finish()


if __name__ == "__main__":
    main()
