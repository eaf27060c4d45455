"""Training on a busy machine: the cost of spinning against that of sleeping OpenMP threads.

    python benchmarks/busy.py [--loops 0 1 2] [--seconds 6] [--rounds 3] [--settings …]

Each setting of the OpenMP runtime trains CP-ResNet small on all CPUs, in a process of its own (the
runtime reads its settings when torch is loaded), beside N processes that keep a CPU busy (--loops). The
settings take turns within each round, so that other load of the machine affects all of them. Prints the
lowest and the highest clips/s of the rounds, and their median relative to the runtime's default with the
fewest busy processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

# What the runtime does if nobody says anything, what cpprune asks for, and the alternatives.
SETTINGS: dict[str, dict[str, str]] = {
    "spinning": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
READ_BY_THE_RUNTIME = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
BATCH = 64


def train(seconds: float, precision: str) -> float:
    """Return the clips/s of training steps of CP-ResNet small in this process."""
    import torch

    import cpprune

    torch.manual_seed(0)
    network = cpprune.build_model("cp_resnet", base_channels=32, channels_multiplier=1)
    features = cpprune.log_mel()
    optimizer = torch.optim.Adam(network.parameters())
    wave_BT = torch.rand(BATCH, 32_000) - 0.5
    labels_B = torch.randint(10, (BATCH,))
    network.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.no_grad():
            x_BCFN = features(wave_BT).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(network(x_BCFN).float(), labels_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    steps, begin = 0, time.perf_counter()
    while (took := time.perf_counter() - begin) < seconds:
        step()
        steps += 1
    return BATCH * steps / took


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep some processes busy for the length of a block."""
    count = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(count) for _ in range(loops)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(setting: dict[str, str], seconds: float, precision: str) -> float:
    """Return the clips/s of a process with these settings of the runtime."""
    environment = {k: v for k, v in os.environ.items() if k not in READ_BY_THE_RUNTIME}
    done = subprocess.run(
        [sys.executable, __file__, "--train", str(seconds), "--precision", precision],
        env={**environment, **setting},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--train", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(train(arguments.train, arguments.precision))
        return
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    names = arguments.settings
    for turn in range(arguments.rounds):
        for loops in arguments.loops:
            with busy(loops):
                for name in (names[turn % len(names) :] + names)[: len(names)]:
                    how = SETTINGS[name], arguments.seconds, arguments.precision
                    found[name, loops].append(measure(*how))
    quiet = statistics.median(found[names[0], arguments.loops[0]])
    print(f"{len(os.sched_getaffinity(0))} CPUs, {arguments.rounds} rounds")
    print("| setting | busy loops | clips/s | of the first's, quiet |")
    print("|---|---|---|---|")
    for (name, loops), speeds in found.items():
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        print(f"| {name} | {loops} | {spread} | {statistics.median(speeds) / quiet:.2f} |")


if __name__ == "__main__":
    main()
