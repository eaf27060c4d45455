"""Budgets for the big CP-ResNet: is every one met, and how much of it is left unused?

    python benchmarks/budgets.py

Each row makes a plan on the untrained network (criterion magnitude), cuts a copy by it, and counts what
is there then with torchinfo: the figures are of the cut network, not of the plan.
"""

from __future__ import annotations

import copy
import platform
import sys

import torch

from cpprune import build_model
from cpprune.complexity import count_macs, count_parameters
from cpprune.models.resize import layer_widths
from cpprune.pruning.budget import parse_budget
from cpprune.pruning.plan import make_plan
from cpprune.pruning.surgery import apply_plan
from shards.errors import InputError

INPUT_SHAPE = (1, 256, 44)


def cut_to(network: torch.nn.Module, budget: str, scope: str) -> tuple[int, int]:
    """Return parameters and MACs of a copy cut to the budget."""
    twin = copy.deepcopy(network)
    plan = make_plan(
        twin,
        INPUT_SHAPE,
        criterion="magnitude",
        scope=scope,
        budget=budget,
        original_widths=layer_widths(twin),
    )
    apply_plan(twin, INPUT_SHAPE, plan)
    return count_parameters(twin), count_macs(twin, INPUT_SHAPE)


def main() -> int:
    torch.manual_seed(0)
    network = build_model("cp_resnet")
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}")
    print(f"{'budget':<44} {'scope':<7} {'parameters':>10} {'MACs':>11} {'unused':>8}")
    single = [f"params<={n}" for n in range(10_000, 120_001, 5_789)]
    joint = [
        "params<=47028",
        "params<=47028,macs<=10e6",
        "params<=60000,macs<=30e6,bytes<=128000@fp16",
        "macs<=5e6,bytes<=32000@int8",
    ]
    failures = 0
    for scope in ("local", "global"):
        for budget in single + joint:
            parameters, macs = cut_to(network, budget, scope)
            have = {"params": parameters, "macs": macs}
            shares = [have[limit.quantity] / limit.bound for limit in parse_budget(budget)]
            unused = 1 - max(shares)
            failures += unused < 0 or unused >= 0.01
            print(f"{budget:<44} {scope:<7} {parameters:>10,} {macs:>11,} {unused:>8.3%}")
    for budget in ("params<=100", "params<=47028,macs<=1000"):
        try:
            cut_to(network, budget, "local")
        except InputError as error:
            print(f"{budget}: {error}")
        else:
            failures += 1
    print(f"{failures} budgets missed or left more than 1 % unused")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
