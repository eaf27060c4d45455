"""What a training step of CP-ResNet big costs, part by part: network, front end, reading.

    python benchmarks/step.py [--batch 256 1024 4096] [--compile off capture inductor graph]

The rows add one part after the other: the network alone on spectrograms that lie there; with the front
end, on int16 clips that lie on the device; and whole steps out of tar shards. The limit is what the
network's multiply-adds (three times the forward pass) cost at the matrix rate measured in the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import limits
import torch
from reader import make_dataset

from cpprune.audio.config import AugmentConfig
from cpprune.config import RunConfig
from cpprune.data.config import DataConfig
from cpprune.data.loader import Batch
from cpprune.distributed import process_group
from cpprune.evaluation.complexity import count_macs
from cpprune.training.config import TrainConfig
from cpprune.training.engine import PLAIN_STEPS
from cpprune.training.loop import Trainer
from cpprune.training.step import TrainingStep
from shards.launcher import read_launch


def make(
    dataset: Path, run: Path, batch: int, precision: Any, compiled: Any, resident: Any = "auto"
) -> Trainer:
    """Return a trainer that is ready for its first step."""
    config = RunConfig(
        run=str(run),
        data=DataConfig(path=str(dataset), in_memory=resident),
        train=TrainConfig(batch_size=batch, precision=precision, compile=compiled, epochs=1000),
    )
    accelerator = process_group.start(read_launch(), "no")
    trainer = Trainer(config, frozenset(), accelerator, ExitStack())
    trainer.model.network.train()
    return trainer


class Given(torch.nn.Module):
    """In the place of the front end: spectrograms that are there already."""

    def __init__(self, x_BCFN: torch.Tensor) -> None:
        super().__init__()
        self.x_BCFN = x_BCFN

    def forward(self, clips: torch.Tensor, band_edges: torch.Tensor | None = None) -> torch.Tensor:
        """Return the spectrograms."""
        return self.x_BCFN


def network_seconds(step: TrainingStep, batch: Batch, rounds: int) -> float:
    """Return the time of forward, backward and update on spectrograms that lie on the device."""
    engine, config = step.engine, step.config
    features = engine.features
    x = torch.randn((len(batch.ids), *engine.model.input_shape), device=engine.device)
    engine.features = Given(x)  # type: ignore[assignment]
    step.config = replace(config, augment=AugmentConfig(mixstyle_p=0))
    seconds = step_seconds(step, batch, rounds)
    engine.features, step.config = features, config
    engine.forget_captured()
    return seconds


def step_seconds(step: TrainingStep, batch: Batch, rounds: int) -> float:
    """Return the time of a whole step on clips that lie on the device."""

    def call() -> None:
        step(0, batch, 0)

    for _ in range(PLAIN_STEPS + 1):
        call()
    return limits.seconds(call, step.engine.device, rounds, calls=2)


def measure(trainer: Trainer, rounds: int) -> dict[str, float]:
    """Return the seconds of a step by what it holds."""
    step, device = trainer.step, trainer.device
    read = next(iter(trainer.batches.epoch(0)))
    here = Batch(0, read.ids, read.start, read.stop, read.clips.to(device))
    found = {
        "network": network_seconds(step, here, rounds),
        "front end + network": step_seconds(step, here, rounds),
    }
    steps = len(trainer.batches)
    trainer.train_epoch(0)
    limits.wait(device)
    begin = time.perf_counter()
    trainer.train_epoch(1)
    limits.wait(device)
    found["from tar shards"] = (time.perf_counter() - begin) / steps
    return found


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024, 4096] if cuda else [64])
    parser.add_argument("--precision", nargs="+", default=["bf16"] if cuda else ["no", "bf16"])
    parser.add_argument(
        "--compile", nargs="+", default=["off", "capture", "graph"] if cuda else ["off"]
    )
    parser.add_argument("--clips", type=int, default=40_960 if cuda else 512)
    parser.add_argument("--rounds", type=int, default=10 if cuda else 5)
    arguments = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    single, half, _ = limits.report(device)
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder, "dataset"), arguments.clips, validation=64)
        print("| precision | compile | batch | step | ms | clips/s | of the limit |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for precision in arguments.precision:
            for compiled in arguments.compile:
                for batch in arguments.batch:
                    run = Path(folder, f"{precision}-{compiled}-{batch}")
                    how = precision, compiled, "off"
                    trainer = make(Path(folder, "dataset"), run, batch, *how)
                    model = trainer.model
                    flops = 6 * count_macs(model.network, model.input_shape)
                    limit = (half if precision == "bf16" else single) / flops
                    for label, took in measure(trainer, arguments.rounds).items():
                        row = f"{precision} | {compiled} | {batch} | {label} | {took * 1e3:.2f}"
                        speed = batch / took
                        print(f"| {row} | {speed:,.0f} | {speed / limit:.1%} |", flush=True)
                    process_group.finish()
    if cuda:
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
