"""Accuracy of runs whose number of processes changes within the first epoch.

    python benchmarks/elastic.py

Each seed is trained on the demo's dataset by one process, and again by one, two, four and one processes
in turn, each resuming where the one before was stopped. The last weights are evaluated on the test
split, and the difference is compared with the spread over seeds. Finished runs are not repeated. Needs
scipy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

MOVES = (1, 2, 4, 1)
# Several processes agree on whether to stop at every fourth step.
STOP = ["--train.time_limit_minutes", "1e-9"]


def launch(processes: int, *arguments: object) -> None:
    """Start launch/train.py on some processes."""
    words = [sys.executable]
    if processes > 1:
        words += [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            "--",
        ]
    done = subprocess.run(
        [*words, "launch/train.py", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr}")


def measure(out: Path, moves: tuple[int, ...], seed: int, epochs: int) -> dict[str, Any]:
    """Train, unless that was done before; return the test metrics of the last weights."""
    run, dataset = out / f"{'-'.join(map(str, moves))}-{seed}", out / "demo/dataset"
    settings = ["--config", "configs/demo.yaml", "--data.path", dataset, "--run", run]
    settings += ["--model.channels_multiplier", 1, "--train.epochs", epochs, "--seed", seed]
    if not (run / "result.json").exists():
        for processes in moves[:-1]:
            launch(processes, *settings, *STOP)
        launch(moves[-1], *settings)
    words = ["evaluate", run / "model_last", "--data", dataset, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cpprune", *map(str, words)], capture_output=True, check=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/elastic"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()

    import numpy as np
    from scipy import stats

    from cpprune.cli.demo import CLIPS, build

    build(arguments.out / "demo", CLIPS)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; {CLIPS} clips, {arguments.epochs} epochs\n"
    )
    print("| seed | figure | one process | moved | difference |\n|---|---|---|---|---|")
    figures: dict[str, list[tuple[float, float]]] = {"macro_accuracy": [], "log_loss": []}
    for seed in range(arguments.seeds):
        one, moved = (measure(arguments.out, m, seed, arguments.epochs) for m in ((1,), MOVES))
        for name, pairs in figures.items():
            pairs.append((one[name], moved[name]))
            line = f"{one[name]:.4f} | {moved[name]:.4f} | {moved[name] - one[name]:+.4f}"
            print(f"| {seed} | {name} | {line} |", flush=True)
    print()
    for name, pairs in figures.items():
        alone, other = np.array(pairs).T
        p = stats.ttest_rel(other, alone).pvalue
        print(
            f"{name}: one process {alone.mean():.4f} ± {alone.std(ddof=1):.4f} over seeds, moved "
            f"{other.mean():.4f} ± {other.std(ddof=1):.4f}, mean difference "
            f"{(other - alone).mean():+.4f}, paired p {p:.2f}"
        )


if __name__ == "__main__":
    main()
