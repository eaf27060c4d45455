"""What a command spends before it does what it was asked for.

    python benchmarks/startup.py [--rounds 5]

`cpprune --help` is timed beside a Python that imports numpy and jsonargparse, in turns; and a training
is followed from the start of Python to its first step, part by part. CPU time of the process, which
others disturb less than the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLLOWED = """
import json, sys, time
parts, last = {}, 0.0
def done(part):
    global last
    now = time.process_time()
    parts[part] = now - last
    last = now
done("Python itself")
import torch
done("import torch")
import accelerate
done("import accelerate")
import cpprune.training.loop
done("import cpprune.training.loop")
from cpprune.distributed import process_group
from contextlib import ExitStack
from cpprune.config import RunConfig
from cpprune.training.config import TrainConfig
from cpprune.data.config import DataConfig
from shards.launcher import read_launch
config = RunConfig(run=sys.argv[2], data=DataConfig(path=sys.argv[1]), train=TrainConfig(batch_size=64))
accelerator = process_group.start(read_launch(), "no")
done("the process group and Accelerator")
trainer = cpprune.training.loop.Trainer(config, frozenset(), accelerator, ExitStack())
done("dataset, model, the run's folder and the optimizer")
batch = next(iter(trainer.batches.epoch(0)))
done("the first batch, or all clips where they fit into memory")
trainer.step(0, batch, 0)
done("the first step")
print(json.dumps(parts))
"""


def cpu_seconds(words: list[str]) -> float:
    """Return the CPU time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    commands = {
        "python -c 'import numpy, jsonargparse'": ["-c", "import numpy, jsonargparse"],
        "cpprune --help": ["-m", "cpprune", "--help"],
        "cpprune train --help": ["-m", "cpprune", "train", "--help"],
    }
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(arguments.rounds):
        for label, words in commands.items():
            best[label] = min(best[label], cpu_seconds([sys.executable, *words]))
    first = next(iter(best.values()))
    print("| command | CPU seconds | ratio |\n|---|---|---|")
    for label, took in best.items():
        print(f"| `{label}` | {took:.2f} | {took / first:.2f} |")

    from cpprune.cli.demo import CLIPS, build

    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), CLIPS)
        found: list[dict[str, float]] = []
        for round_ in range(arguments.rounds):
            run = str(Path(folder, f"run-{round_}"))
            words = [sys.executable, "-c", FOLLOWED, str(Path(folder, "dataset")), run]
            begin = time.perf_counter()
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            found[-1]["by the clock, all of it"] = time.perf_counter() - begin
    print("\n| from the start to the first step | CPU seconds |\n|---|---|")
    for part in found[0]:
        print(f"| {part} | {min(parts[part] for parts in found):.2f} |")


if __name__ == "__main__":
    main()
