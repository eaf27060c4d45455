"""Which way of getting to 44,784 parameters is best? Every way, over several seeds, with paired tests.

    python benchmarks/methods.py --jobs 2

All networks are trained on the demo's dataset for the same number of steps, with the same optimizer,
augmentation and seeds; a cut is an event within that training. What is measured is the test split, on
the model that was best on the validation split. Finished runs are not run again, so a stopped benchmark
goes on where it was. Needs `pip install 'cpprune[report]'` (scipy).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

EPOCHS = 15
CUT = 9  # the epoch of the last cut: nine epochs before it, six after it
RATIO = 0.41

PRUNE = ["--prune.ratio", RATIO, "--prune.criterion", "magnitude"]
PROGRESSIVE = [*PRUNE, "--prune.steps", 8, "--prune.start_epoch", CUT - 7, "--prune.ramp", "cubic"]
METHODS: dict[str, list[object]] = {
    "small (32/32/32)": ["--model.channels_multiplier", 1],
    "big (32/64/128)": [],
    "big, float32": ["--train.precision", "no", "--data.in_memory", "off"],
    "control (18/37/75)": ["--model.widths", "[18, 37, 75]"],
    "from scratch": PRUNE,
    "one-shot": [*PRUNE, "--prune.start_epoch", CUT],
    "one-shot, lr rewound": [*PRUNE, "--prune.start_epoch", CUT, "--prune.learning_rate", "rewind"],
    "5 steps": [*PRUNE, "--prune.steps", 5, "--prune.start_epoch", CUT - 4],
    "progressive": PROGRESSIVE,
    "progressive, state dropped": [*PROGRESSIVE, "--prune.carry_state", "false"],
    "slimming": [
        *["--prune.ratio", RATIO, "--prune.criterion", "bn_scale", "--prune.start_epoch", CUT],
        *["--prune.sparsity", "slimming", "--prune.sparsity_strength", 1e-4],
    ],
}
PAIRS = [
    ("big (32/64/128)", "control (18/37/75)"),
    ("small (32/32/32)", "control (18/37/75)"),
    ("big (32/64/128)", "big, float32"),
    ("from scratch", "control (18/37/75)"),
    ("one-shot", "control (18/37/75)"),
    ("one-shot, lr rewound", "one-shot"),
    ("5 steps", "one-shot"),
    ("progressive", "one-shot"),
    ("progressive", "5 steps"),
    ("progressive", "progressive, state dropped"),
    ("slimming", "one-shot"),
    ("progressive", "control (18/37/75)"),
    ("slimming", "control (18/37/75)"),
    ("big (32/64/128)", "small (32/32/32)"),
]


def cpprune(*arguments: object) -> dict[str, Any]:
    """Run a command on one thread and return its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "cpprune", *map(str, arguments), "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"cpprune {' '.join(map(str, arguments))}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(out: Path, method: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train a network (or find it trained) and return what it does on the test split."""
    run = out / f"{list(METHODS).index(method)}-{seed}"
    dataset = out / "demo/dataset"
    settings: list[object] = ["--config", "configs/demo.yaml", "--data.path", dataset, "--run", run]
    settings += ["--train.epochs", epochs, "--seed", seed, *METHODS[method]]
    trained = cpprune("train", *settings)
    report = cpprune("evaluate", trained["model"], "--data", dataset)
    print(f"seed {seed}  {method:<28} {report['macro_accuracy']:.4f}", file=sys.stderr, flush=True)
    keys = ("parameters", "macs", "macro_accuracy", "log_loss")
    return {"method": method, "seed": seed, **{key: report[key] for key in keys}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--only", nargs="*", default=list(METHODS), help="methods to run")
    arguments = parser.parse_args()

    from cpprune.cli.demo import CLIPS, build

    build(arguments.out / "demo", CLIPS)
    jobs = [(method, seed) for seed in range(arguments.seeds) for method in arguments.only]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(
            pool.map(lambda job: measure(arguments.out, job[0], job[1], arguments.epochs), jobs)
        )
    (arguments.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(f"{platform.machine()}, {os.cpu_count()} cores; {arguments.seeds} seeds, {CLIPS} clips, ")
    print(f"{arguments.epochs} epochs each, last cut at the start of epoch {CUT + 1}\n")
    print_table(rows, arguments.only)
    print_pairs(rows, arguments.only)


def of(rows: list[dict[str, Any]], method: str, key: str) -> list[float]:
    """Return a figure of every seed, in the order of seeds."""
    found = [row for row in rows if row["method"] == method]
    return [row[key] for row in sorted(found, key=lambda row: row["seed"])]


def print_table(rows: list[dict[str, Any]], methods: list[str]) -> None:
    import numpy as np

    print("| method | parameters | MACs | macro accuracy | log loss |")
    print("|---|---|---|---|---|")
    for method in methods:
        figures = []
        for key in ("macro_accuracy", "log_loss"):
            values = np.array(of(rows, method, key))
            figures.append(f"{values.mean():.4f} ± {values.std(ddof=1):.4f}")
        size = " | ".join(f"{int(of(rows, method, key)[0]):,}" for key in ("parameters", "macs"))
        print(f"| {method} | {size} | {figures[0]} | {figures[1]} |")


def print_pairs(rows: list[dict[str, Any]], methods: list[str]) -> None:
    import numpy as np
    from scipy import stats

    print("\n| difference | accuracy, points | p | log loss | p |")
    print("|---|---|---|---|---|")
    for one, other in PAIRS:
        if one in methods and other in methods:
            cells = []
            for key, scale in (("macro_accuracy", 100), ("log_loss", 1)):
                change = scale * (np.array(of(rows, one, key)) - np.array(of(rows, other, key)))
                p = stats.ttest_1samp(change, 0).pvalue
                cells.append(f"{change.mean():+.3f} ± {change.std(ddof=1):.3f} | {p:.3f}")
            print(f"| {one} − {other} | {cells[0]} | {cells[1]} |")
    print("\np: two-sided paired t-test over the seeds, not corrected for the number of tests")


if __name__ == "__main__":
    main()
