"""The training loop that most projects write, beside ours: the same clips, network, batch and optimizer.

    python benchmarks/baseline.py [--clips 512] [--batch 64] [--rounds 3]

The usual loop reads one WAV file for each clip in worker processes, computes the spectrograms of
a batch with torch.stft and a dense filter bank, trains in float32 and asks for the loss at every step.
Ours reads the clips from tar shards. Whole epochs are timed in turns, the best of each counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import limits
import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from cpprune.config import RunConfig
from cpprune.data.config import DataConfig
from cpprune.distributed import process_group
from cpprune.models.registry import build_model
from cpprune.training.config import TrainConfig
from cpprune.training.loop import Trainer
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions
from shards.launcher import read_launch
from shards.sources.synthetic import synthesise


class Files(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One file for each clip."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted((folder / "audio").rglob("*.wav"))
        scenes = sorted({path.name.split("-")[0] for path in self.paths})
        self.labels = [scenes.index(path.name.split("-")[0]) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        wave, _ = soundfile.read(self.paths[index], dtype="float32")
        return torch.from_numpy(wave), self.labels[index]


class UsualMel(nn.Module):
    """The front end as the recipe's source writes it: a new dense bank for every batch."""

    def forward(self, wave: Tensor) -> Tensor:
        """[B, T] → [B, 1, 256, N]."""
        wave = wave[:, 1:] - 0.97 * wave[:, :-1]
        window = torch.hann_window(2048, periodic=False, device=wave.device)
        spectrum = torch.stft(wave, 2048, 744, 2048, window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        low = float(np.random.default_rng().integers(10))
        bank, _ = torchaudio.compliance.kaldi.get_mel_banks(
            256, 2048, 32_000, low, 15_500.0, 100.0, -500.0, 1.0
        )
        bank = functional.pad(bank, (0, 1)).to(wave.device)
        return ((torch.log(bank @ power + 1e-5) + 4.5) / 5).unsqueeze(1)


def usual(source: Path, batch: int, workers: int, device: torch.device) -> Callable[[], int]:
    """Return an epoch of the usual loop; it answers how many clips it trained on."""
    files = Files(source)
    network = build_model("cp_resnet").to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=3e-3)
    mel = UsualMel().to(device)
    loader = DataLoader(
        files, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )

    def epoch() -> int:
        losses = []
        for wave, label in loader:
            optimizer.zero_grad()
            logits = network(mel(wave.to(device)))
            loss = functional.cross_entropy(logits, label.to(device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return len(files)

    return epoch


def ours(
    dataset: Path, run: Path, batch: int, precision: Any, accelerator: Any, compiled: Any = "auto"
) -> Callable[[], int]:
    """Return an epoch of our loop."""
    config = RunConfig(
        run=str(run),
        data=DataConfig(path=str(dataset)),
        train=TrainConfig(batch_size=batch, precision=precision, epochs=1000, compile=compiled),
    )
    trainer = Trainer(config, frozenset(), accelerator, ExitStack())
    numbers = iter(range(1000))

    def epoch() -> int:
        trainer.train_epoch(next(numbers))
        return trainer.batches.clips

    return epoch


@contextmanager
def made(clips: int) -> Iterator[tuple[Path, Path, Path]]:
    """Make clips in TAU's layout, and a dataset of those that are trained on."""
    with tempfile.TemporaryDirectory() as folder:
        source, dataset = Path(folder, "source"), Path(folder, "dataset")
        synthesise(source, clips, seed=0)
        build_dataset(BuildOptions(kind="tau2022", source=source), dataset)
        yield source, dataset, Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the usual loop")
    arguments = parser.parse_args()

    with made(arguments.clips) as (source, dataset, folder):
        accelerator = process_group.start(read_launch(), "no")
        device = accelerator.device
        limits.report(device)
        loops = {
            "the usual loop": usual(source, arguments.batch, arguments.workers, device),
            "ours, float32": ours(dataset, folder / "a", arguments.batch, "no", accelerator),
            "ours, bfloat16": ours(dataset, folder / "b", arguments.batch, "bf16", accelerator),
        }
        if device.type == "cuda":
            more = dataset, folder / "c", arguments.batch, "bf16", accelerator, "graph"
            loops["ours, bfloat16, train.compile graph"] = ours(*more)
        best = dict.fromkeys(loops, 0.0)
        for _ in range(arguments.rounds + 1):  # the first warms up, and counts if it is the best
            for label, epoch in loops.items():
                begin = time.perf_counter()
                clips = epoch()
                limits.wait(device)
                best[label] = max(best[label], clips / (time.perf_counter() - begin))
        process_group.finish()
    print(f"CP-ResNet big at 256×44, batch {arguments.batch}\n")
    print("| loop | clips/s | ratio |\n|---|---|---|")
    for label, speed in best.items():
        print(f"| {label} | {speed:,.0f} | {speed / best['the usual loop']:.2f} |")
    print(json.dumps(best))


if __name__ == "__main__":
    main()
