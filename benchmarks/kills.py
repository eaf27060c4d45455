"""Resumption after SIGKILL at random moments, compared bit for bit with an undisturbed run.

    python benchmarks/kills.py --rounds 100 --processes 1 2

Each round is a run with two pruning steps, a moving average of the weights, a sparsity regularizer and
data workers. It is killed at a random moment (during a step, validation, pruning, saving, or at the very
start) and started again with the same command, until it ends. Its weights, optimizer state, averages,
models and metrics must equal those of the run that was not killed. Processes are forked from one that
has imported everything, so that a start takes no seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

SETTINGS = [
    *("--data.train_fraction", "0.25", "--train.batch_size", "8", "--train.epochs", "4"),
    *("--model.widths", "[6, 8, 10]", "--augment.mixstyle_p", "0.6", "--optim.lr", "3e-3"),
    *("--prune.ratio", "0.5", "--prune.steps", "2", "--prune.start_epoch", "1"),
    *("--prune.sparsity", "growing", "--train.ema_decay", "0.9", "--train.checkpoint_steps", "1"),
]
TIMES = {"seconds", "clips_per_second", "memory_bytes"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(arguments: Sequence[str], world: int, log: Path) -> list[int]:
    """Fork a process for each rank and return their numbers."""
    port, children = free_port(), []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 3
        try:
            os.setpgid(0, 0)  # so that its workers can be killed with it
            variables: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in variables.items()})
            with log.open("a") as file, redirect_stderr(file), redirect_stdout(file):
                from cpprune.cli.main import main

                status = main(list(arguments))
        except BaseException:
            log.open("a").write(traceback.format_exc())
        finally:
            os._exit(status)
    return children


def kill(children: Sequence[int]) -> None:
    for child in children:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(child, signal.SIGKILL)  # before it had a group of its own


def wait(children: Sequence[int]) -> list[int]:
    """Wait for all processes; return their exit statuses, or minus the signal that killed them."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def contents(run: Path) -> dict[str, object]:
    """Return the hashes of a run's final tensors, and its metrics without those that measure time."""
    last = max((run / "checkpoints").glob("step-*"))
    files = [last / f"{name}.safetensors" for name in ("network", "optimizer", "average")]
    files += [run / name / "model.safetensors" for name in ("model", "model_last")]
    found: dict[str, object] = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return found


def one_round(
    run: Path, arguments: Sequence[str], world: int, seconds: float, rng: np.random.Generator
) -> int:
    """Run to the end, killed at random moments; return how often it was killed.

    Raises:
        RuntimeError: it ended by itself, but not well.
    """
    log = run.with_suffix(".log")
    kills = 0
    while not (run / "result.json").exists():
        children = start(arguments, world, log)
        if kills < 12:
            time.sleep(rng.uniform(0, seconds))
            kill(children)
        statuses = wait(children)
        if any(status not in (0, -signal.SIGKILL) for status in statuses):
            raise RuntimeError(f"it ended with {statuses}:\n{log.read_text()}")
        kills += -signal.SIGKILL in statuses
    return kills


def rounds(folder: Path, dataset: Path, world: int, workers: int, number: int) -> int:
    """Run some rounds, print them, and return how many differ from the undisturbed run."""

    def command(run: Path) -> list[str]:
        own = ["--data.path", str(dataset), "--data.workers", str(workers), "--run", str(run)]
        return ["prune", *SETTINGS, *own]

    whole = folder / f"whole-{world}-{workers}"
    begin = time.monotonic()
    statuses = wait(start(command(whole), world, whole.with_suffix(".log")))
    seconds = time.monotonic() - begin
    if any(statuses):
        sys.exit(whole.with_suffix(".log").read_text())
    expected = contents(whole)
    rng = np.random.default_rng(world)
    different = kills = 0
    for count in range(number):
        run = folder / f"run-{world}-{workers}-{count}"
        kills += one_round(run, command(run), world, seconds, rng)
        found = contents(run)
        if found != expected:
            different += 1
            names = [name for name in expected if found.get(name) != expected[name]]
            print(f"round {count}: {', '.join(names)} differ", flush=True)
        shutil.rmtree(run)
    print(
        f"{world} process(es), {workers} worker(s): {number - different} of {number} rounds equal, "
        f"{kills} kills, undisturbed run {seconds:.1f} s",
        flush=True,
    )
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, default=1, help="reading workers of each process")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    import torch_pruning  # noqa: F401 - what a child would have to import
    import torchinfo  # noqa: F401

    import cpprune.training.loop  # noqa: F401
    from shards.build.dataset import build_dataset
    from shards.build.plan import BuildOptions
    from shards.sources.synthetic import synthesise

    print(f"{platform.machine()}, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with redirect_stderr(sys.stderr), redirect_stdout(sys.stderr):
            synthesise(folder / "source", 200, seed=5, workers=1)
            options = BuildOptions(kind="tau2022", source=folder / "source")
            build_dataset(options, folder / "dataset", workers=1)
        different = sum(
            rounds(folder, folder / "dataset", world, arguments.workers, arguments.rounds)
            for world in arguments.processes
        )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
