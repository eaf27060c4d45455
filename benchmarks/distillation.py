"""Seconds an epoch without a teacher, with stored logits and with the teacher in every step, as ratios.

    python benchmarks/distillation.py [--clips 2048] [--batch 256] [--epochs 3]

CP-ResNet of half the width learns from one of full width, on noise. The trainers take turns by
epochs. The ratio is the median over the epochs: an epoch's time to that of the one without a teacher in
the same turn. On a CPU that is the time of this process in one thread, whatever runs beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch
from reader import make_dataset

from cpprune.config import RunConfig
from cpprune.data.config import DataConfig
from cpprune.distill.config import DistillConfig
from cpprune.distributed import process_group
from cpprune.models import artifact
from cpprune.models.config import ModelConfig
from cpprune.training.config import TrainConfig
from cpprune.training.loop import Trainer
from shards.launcher import read_launch


def seconds(trainer: Trainer, epoch: int) -> float:
    """Return how long an epoch of training takes."""
    cuda = trainer.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    begin = clock()
    trainer.progress.batch = 0
    trainer.train_epoch(epoch)
    if cuda:
        torch.cuda.synchronize()
    return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as resources:
        place = Path(name)
        make_dataset(place / "data", given.clips, validation=8)
        accelerator = process_group.start(read_launch(), "no")
        torch.set_num_threads(1)
        resources.callback(process_group.finish)

        def make(
            run: str, teachers: list[str], mode: str = "clean", cache: str | None = None
        ) -> Trainer:
            config = RunConfig(
                run=str(place / run),
                data=DataConfig(path=str(place / "data")),
                model=ModelConfig(widths=[16, 32, 46])
                if teachers or run == "none"
                else ModelConfig(),
                train=TrainConfig(batch_size=given.batch, epochs=1000),
                distill=DistillConfig(teachers=teachers, mode=mode, cache=cache),  # type: ignore[arg-type]
            )
            return Trainer(config, frozenset(), accelerator, resources)

        big = make("big", [])
        teacher = str(place / "teacher")
        artifact.save(big.model, Path(teacher))
        kept = str(place / "logits")
        ways = {
            "no teacher": make("none", []),
            "stored logits": make("stored", [teacher]),
            "on the fly": make("fly", [teacher], "on_the_fly"),
            "on the fly, writing distill.cache": make("w", [teacher], "on_the_fly", kept),
            "on the fly, reading distill.cache": make("r", [teacher], "on_the_fly", kept),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for epoch in range(given.epochs + 1):
            for way, trainer in ways.items():
                found[way].append(seconds(trainer, epoch))
    without = found["no teacher"]
    print("| | first epoch, s | later epochs, s | ratio |\n|---|---|---|---|")
    for way, times in found.items():
        ratio = median(own / base for own, base in zip(times[1:], without[1:], strict=True))
        print(f"| {way} | {times[0]:.2f} | {median(times[1:]):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
