"""What ships, measured: eight networks, each exported to every target in every precision.

    python benchmarks/shipped.py --out FOLDER [--mnist IDX] [--clips 300] [--only NETWORK …]
                                    [--to TARGET …]

Makes the dataset of `cpprune demo`, trains its first networks and others on it (with --mnist, one on
digits in a folder of IDX files), exports each by `cpprune export`, reads the file back and compares it
with the model folder on the test split. Where int8 after training loses more than half a point of
accuracy, the network is also exported with --max-drop, and trained for two more epochs as it will be
quantised. Compiled for a PC, C is slow: --clips is how many clips it has to do. Finished rows are kept
in FOLDER, so a stopped benchmark goes on where it was. One thread; latencies are medians of this
process's time on the CPU, whatever runs beside it, as ratios to torch, one call of each in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import shards.cli.main
from cpprune.audio.config import AugmentConfig, FeaturesConfig
from cpprune.cli import demo
from cpprune.cli.export import parse_arguments, write_export
from cpprune.config import RunConfig
from cpprune.data.compatibility import open_for_model
from cpprune.evaluation.predict import predict_clips
from cpprune.export.check import noise
from cpprune.export.exported import storage
from cpprune.export.target import Exported, targets
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.config import ModelConfig
from cpprune.runs.records import StoppedRun
from cpprune.training.config import QuantizeConfig
from cpprune.training.loop import train
from shards.errors import UserError
from shards.split import Split

# All with 64 mel bins; resnet10t is narrow, so that it takes as long as the others.
TIMM = {
    "mobilenetv3_small_050": {},
    "ghostnet_050": {},
    "resnet10t": {"channels": [16, 32, 64, 128], "stem_width": 8},
}
DIGITS = "digits"
MOST_LOST = 0.005  # of the accuracy, by int8
MAX_DROP, TRAINED = f"int8, --max-drop {MOST_LOST}", "int8, trained so"
EPOCHS, TIMM_EPOCHS = 4, 6  # of the networks that the demo has not
MORE_EPOCHS = 2
ROUNDS = 30
HEAD = [
    *("model", "to", "precision", "network, bytes", "stored, bytes", "RAM, bytes", "clips"),
    *("same class", "largest difference", "accuracy", "of the model", "latency, torch = 1"),
]


@dataclass(frozen=True)
class Row:
    """An exported model beside the model folder that it was made from.

    Attributes:
        stored: bytes of the file, or of flash.
        ram: bytes, of C.
        same: share of clips to which both give the same class.
        difference: largest of the logits.
        latency: of one clip, torch's as 1.
    """

    network: str
    to: str
    precision: str
    network_bytes: int
    stored: int
    ram: int | None
    clips: int
    same: float
    difference: float
    accuracy: float
    of_model: float
    latency: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What the row is of."""
        return self.network, self.to, self.precision

    def __str__(self) -> str:
        ram = "" if self.ram is None else f"{self.ram:,}"
        cells = [*self.key, f"{self.network_bytes:,}", f"{self.stored:,}", ram, f"{self.clips:,}"]
        cells += [f"{self.same:.1%}", f"{self.difference:.1e}", f"{self.accuracy:.4f}"]
        return f"| {' | '.join([*cells, f'{self.of_model:.4f}', f'{self.latency:.2f}'])} |"


class Bench:
    """The benchmark's folder, with the rows that are finished.

    Args:
        out: the folder.
        clips: that C computes.
        mnist: folder of IDX files; None for no digits.
        only: targets; all if empty.
    """

    def __init__(self, out: Path, clips: int, mnist: Path | None, only: Sequence[str] = ()) -> None:
        self.out, self.clips, self.mnist = out, clips, mnist
        self.targets = {to: own for to, own in targets().items() if not only or to in only}
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.refused: list[str] = []
        out.mkdir(parents=True, exist_ok=True)
        if self._file.is_file():
            found = (Row(**json.loads(line)) for line in self._file.read_text().splitlines())
            self.rows = {row.key: row for row in found}
        self.dataset = demo.build(out, demo.CLIPS)
        self.digits = out / "digits-dataset"
        if mnist:
            with redirect_stdout(sys.stderr):
                words = ["build", "mnist", "--source", str(mnist), "--out", str(self.digits)]
                shards.cli.main.main(words)

    @property
    def _file(self) -> Path:
        return self.out / "rows.jsonl"

    def configurations(self) -> dict[str, RunConfig]:
        """Return the settings of the networks by name."""
        of_demo = demo.configurations(self.out, self.dataset, demo.TRAIN_EPOCHS)
        small, big, pruned = (config for _, config in of_demo[:3])
        others = replace(small, train=replace(small.train, epochs=EPOCHS))
        cp_mobile = replace(
            others,
            run=f"{self.out}/cp_mobile",
            features=FeaturesConfig(preset="dcase24"),
            model=ModelConfig(name="cp_mobile"),
        )
        found = {"small": small, "big": big, "pruned": pruned, "cp_mobile": cp_mobile}
        for name, own in TIMM.items():
            arguments = {"model_name": name, "in_chans": 1, **own}
            model = ModelConfig(factory="timm:create_model", arguments=arguments)
            found[name] = replace(
                small,
                run=f"{self.out}/{name}",
                features=FeaturesConfig(n_mels=64),
                model=model,
                train=replace(small.train, epochs=TIMM_EPOCHS),
            )
        if self.mnist:
            found[DIGITS] = replace(
                others,
                run=f"{self.out}/{DIGITS}",
                data=replace(small.data, path=str(self.digits)),
                features=FeaturesConfig(preset="image"),
                augment=AugmentConfig(mixstyle_p=0),
            )
        return found

    def measure(self, name: str, config: RunConfig) -> None:
        """Train a network, and export it to every target in every precision."""
        model = _trained(config)
        for to, target in self.targets.items():
            for precision in target.precisions:
                self.export(name, model, to, precision)
        lossy = [to for to in self.targets if self._loses((name, to, "int8"))]
        for to in lossy:
            if self.targets[to].int8:
                self.export(name, model, to, MAX_DROP)
        if lossy:
            trained = self._quantisation_aware(config)
            for to, target in self.targets.items():
                if target.as_trained:
                    self.export(name, trained, to, TRAINED)

    def _loses(self, key: tuple[str, str, str]) -> bool:
        row = self.rows.get(key)
        return row is not None and row.of_model - row.accuracy > MOST_LOST + 1e-9

    def _quantisation_aware(self, config: RunConfig) -> Path:
        run = f"{config.run}-int8"
        optim = replace(config.optim, lr=config.optim.lr / 20, warmup_epochs=0)
        epochs = replace(config.train, epochs=MORE_EPOCHS)
        own = replace(config, run=run, init=f"{config.run}/model", optim=optim, train=epochs)
        int8 = QuantizeConfig(start_epoch=0)
        return _trained(replace(own, prune=RunConfig().prune, quantize=int8))

    def export(self, name: str, folder: Path, to: str, way: str) -> None:
        """Add and print a row, unless it is there; or note why there is none."""
        if (name, to, way) in self.rows:
            return
        try:
            row = self._row(name, folder, to, way)
        except UserError as error:
            self.refused.append(f"{name}, {to}, {way}: {error}")
            print(self.refused[-1], file=sys.stderr, flush=True)
            return
        self.rows[row.key] = row
        with self._file.open("a") as file:
            file.write(f"{json.dumps(asdict(row))}\n")
        print(row, file=sys.stderr, flush=True)

    def _row(self, name: str, folder: Path, to: str, way: str) -> Row:
        target = targets()[to]
        precision, _, option = way.partition(", ")
        data = str(self.digits if name == DIGITS else self.dataset)
        out = self.out / f"{name}-{to}-{way.replace(', ', '-').replace(' ', '-')}{target.suffix}"
        words = [str(folder), "--to", to, "--out", str(out), "--precision", precision]
        words += ["--data", data, "--force"]
        words += option.split() if way == MAX_DROP else []
        # C is compiled for this machine and run there only to be checked.
        words += [] if target.load else ["--check", "--check-clips", "1"]
        product = write_export(parse_arguments(words)).product
        exported = target.load(out, threads=1) if target.load else product.exported
        assert exported is not None
        model, split, expected = _of_model(folder, data)
        clips = len(split) if target.load else min(self.clips, len(split))
        places = np.linspace(0, len(split) - 1, clips).astype(np.int64)
        labels, expected = split.labels[places], expected[places]
        found = predict_clips(exported.logits, split.take(places))
        size = product.complexity["bytes"]
        return Row(
            network=name,
            to=to,
            precision=way,
            network_bytes=size["network"],
            stored=storage(size),
            ram=size.get("ram"),
            clips=len(labels),
            same=float((found.argmax(1) == expected.argmax(1)).mean()),
            difference=float(np.abs(found - expected).max()),
            accuracy=float((found.argmax(1) == labels).mean()),
            of_model=float((expected.argmax(1) == labels).mean()),
            latency=latency(model, exported),
        )

    def lines(self) -> Iterator[str]:
        """Yield the lines of the table, and of what was refused."""
        yield f"| {' | '.join(HEAD)} |"
        yield "|" + "---|" * len(HEAD)
        order = list(self.configurations())
        yield from map(str, sorted(self.rows.values(), key=lambda row: order.index(row.network)))
        yield from self.refused


def _trained(config: RunConfig) -> Path:
    """Return the model of a run, which is trained unless it is there."""
    result = train(config, as_command=True)
    if isinstance(result, StoppedRun):
        sys.exit("stopped; the same command goes on")
    return Path(result.model)


@cache
def _of_model(folder: Path, data: str) -> tuple[Model, Split, NDArray[np.float32]]:
    """Return a model, the test split of a dataset, and the model's logits there."""
    model = artifact.load(folder)
    split = open_for_model(data, model).split("test")
    return model, split, predict_clips(model.logits, split)


def latency(model: Model, exported: Exported) -> float:
    """Return the time on the CPU that an exported model takes for one clip, the model's as 1."""
    clip = noise(model, 1)
    times: dict[int, list[float]] = {0: [], 1: []}
    for number in range(ROUNDS + 5):
        for which, logits in enumerate((model.logits, exported.logits)):
            begin = time.process_time()
            logits(clip)
            if number >= 5:
                times[which].append(time.process_time() - begin)
    return statistics.median(times[1]) / statistics.median(times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--to", action="append", default=[], choices=tuple(targets()))
    arguments = parser.parse_args()
    os.environ["CPPRUNE_TRUST"] = "timm"
    torch.set_num_threads(1)
    bench = Bench(arguments.out, arguments.clips, arguments.mnist, arguments.to)
    for name, config in bench.configurations().items():
        if not arguments.only or name in arguments.only:
            bench.measure(name, config)
    print("\n".join(bench.lines()))


if __name__ == "__main__":
    main()
