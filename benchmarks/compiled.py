"""What compiling the network brings: forward, backward and update of CP-ResNet big, eager and compiled.

    python benchmarks/compiled.py [--batch 64] [--precision no bf16]

On a CPU `train.compile` does nothing; the figures say why.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import limits
import torch
from torch.nn import functional

import cpprune
from cpprune.training.engine import Forward

SHAPE = (1, 256, 44)


def make(compiled: bool, precision: str, batch: int, device: torch.device) -> Callable[[], None]:
    """Return a training step on spectrograms that lie on the device."""
    network = cpprune.build_model("cp_resnet").to(device).to(memory_format=torch.channels_last)
    shell = Forward(network, precision, compiled)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    x = torch.randn(batch, *SHAPE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=device)

    def step() -> None:
        functional.cross_entropy(shell(x).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024] if cuda else [64])
    parser.add_argument("--precision", nargs="+", default=["no", "bf16"])
    arguments = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    limits.report(device)
    print("| precision | batch | network | first step, s | ms | ratio |\n|---|---|---|---|---|---|")
    for precision in arguments.precision:
        for batch in arguments.batch:
            steps = {
                name: make(name == "compiled", precision, batch, device)
                for name in ("eager", "compiled")
            }
            first = {}
            for name, step in steps.items():
                begin = time.perf_counter()
                step()
                limits.wait(device)
                first[name] = time.perf_counter() - begin
            took = limits.side_by_side(steps, device, rounds=15)
            for name in steps:
                row = f"{precision} | {batch} | {name} | {first[name]:.1f} | {took[name] * 1e3:.1f}"
                print(f"| {row} | {took['eager'] / took[name]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
