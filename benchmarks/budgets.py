"""Budgets for the big CP-ResNet: is every one met, how much of it is left unused, and who pays?

    python benchmarks/budgets.py

Each row makes a plan (criterion magnitude), cuts a copy by it, and counts with torchinfo, or measures,
what is there then: the figures are of the cut network, not of the plan.

The last table needs a network that knows something. It trains one for a minute on synthetic clips,
measures its sensitivity, and cuts it to one budget in each scope, without fine-tuning: figures of one
seed, which show what the scopes do, and not which of them is best after fine-tuning.
"""

from __future__ import annotations

import copy
import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

import cpprune
import shards
from cpprune import build_model
from cpprune.evaluation.complexity import count_macs, count_parameters, latency
from cpprune.models.resize import layer_widths
from cpprune.pruning.budget import parse_budget
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.planner import make_plan
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

INPUT_SHAPE = (1, 256, 44)
CPU = torch.device("cpu")

# The network of the last table, its budget, and how finely its sensitivity is measured.
CLIPS = 1500
EPOCHS = 10
BUDGET = "params<=47028"
RATIOS = (0.2, 0.4, 0.6, 0.8)
SENSITIVITY_CLIPS = 120


def cut_to(network: torch.nn.Module, **prune: Any) -> torch.nn.Module:
    """Return a copy cut to a budget in a scope."""
    twin = copy.deepcopy(network)
    config, widths = PruneConfig(**prune), layer_widths(twin)
    apply_plan(twin, INPUT_SHAPE, make_plan(twin, INPUT_SHAPE, config, original_widths=widths))
    return twin


def budgets(network: torch.nn.Module) -> int:
    """Print a row for each budget and scope; return how many were missed or left too much unused."""
    single = [f"params<={n}" for n in range(10_000, 120_001, 5_789)]
    joint = [
        "params<=47028",
        "params<=47028,macs<=10e6",
        "params<=60000,macs<=30e6,bytes<=128000@fp16",
        "macs<=5e6,bytes<=32000@int8",
    ]
    print(f"{'budget':<44} {'scope':<7} {'parameters':>10} {'MACs':>11} {'unused':>8}")
    failures = 0
    for scope in ("local", "global"):
        for budget in single + joint:
            twin = cut_to(network, budget=budget, scope=scope)
            have = {"params": count_parameters(twin), "macs": count_macs(twin, INPUT_SHAPE)}
            shares = [have[limit.quantity] / limit.bound for limit in parse_budget(budget)]
            unused = 1 - max(shares)
            failures += unused < 0 or unused >= 0.01
            counts = f"{have['params']:>10,} {have['macs']:>11,}"
            print(f"{budget:<44} {scope:<7} {counts} {unused:>8.3%}")
    for budget in ("params<=100", "params<=47028,macs<=1000", "latency<=1us"):
        try:
            cut_to(network, budget=budget, scope="local")
        except UserError as error:
            print(f"{budget}: {error}")
        else:
            failures += 1
    return failures


def latencies(network: torch.nn.Module) -> int:
    """Print a row for each budget that limits the latency; return how many other limits were missed.

    The limits are parts of what the whole network takes on this machine.
    """
    whole = latency(network, INPUT_SHAPE, CPU)
    print(f"\nthe whole network takes {whole:.3f} ms on {torch.get_num_threads()} thread(s)")
    print(f"{'budget':<44} {'scope':<7} {'parameters':>10} {'MACs':>11} {'ms':>8}")
    failures = 0
    for budget in (
        f"latency<={0.75 * whole:.3f}ms",
        f"params<=47028,latency<={0.9 * whole:.3f}ms",
        f"params<=60000,macs<=20e6,latency<={0.6 * whole:.3f}ms",
    ):
        twin = cut_to(network, budget=budget, scope="local")
        have = {"params": count_parameters(twin), "macs": count_macs(twin, INPUT_SHAPE)}
        counted = [limit for limit in parse_budget(budget) if limit.quantity in have]
        failures += any(have[limit.quantity] > limit.bound for limit in counted)
        counts = f"{have['params']:>10,} {have['macs']:>11,}"
        print(f"{budget:<44} {'local':<7} {counts} {latency(twin, INPUT_SHAPE, CPU):>8.3f}")
    return failures


def scopes(folder: Path) -> None:
    """Train a network, and print what one budget makes of it in each scope."""
    from cpprune.cli.demo import build, configurations
    from cpprune.evaluation.predict import evaluate_model
    from cpprune.pruning.sensitivity import measure_sensitivity, write_sensitivity
    from cpprune.runs.records import RunResult
    from cpprune.training.loop import train

    with (folder / "log").open("w") as log, redirect_stderr(log):
        dataset = build(folder, CLIPS)
        config = dict(configurations(folder, dataset, EPOCHS))["big"]
        trained = train(config)
        assert isinstance(trained, RunResult)
        model = cpprune.load(trained.model)
        split = shards.open_dataset(dataset).split("val")
        found = measure_sensitivity(
            model, split, criterion="magnitude", ratios=RATIOS, clips=SENSITIVITY_CLIPS
        )
        write_sensitivity(found, folder)
    curves = str(folder / "sensitivity.json")
    network = model.network
    rows = {
        "whole": network,
        "local": cut_to(network, budget=BUDGET, scope="local"),
        "global": cut_to(network, budget=BUDGET, scope="global"),
        "sensitivity": cut_to(network, budget=BUDGET, scope="sensitivity", sensitivity=curves),
    }
    print(f"\n{BUDGET}, a trained network cut once, no fine-tuning; figures of {len(split)} clips")
    print(_columns(["scope", "parameters", "MACs", "macro acc.", "log loss"]))
    for scope, twin in rows.items():
        model.network = twin
        measured, _ = evaluate_model(model, split, CPU)
        figures = [f"{measured[key]:.4f}" for key in ("macro_accuracy", "log_loss")]
        counts = [f"{count_parameters(twin):,}", f"{count_macs(twin, INPUT_SHAPE):,}"]
        print(_columns([scope, *counts, *figures]))
    print("\n" + _columns(["width", *rows]))
    for layer in (row["layer"] for row in found["layers"]):
        print(_columns([layer, *(str(layer_widths(twin)[layer]) for twin in rows.values())]))


def _columns(cells: Sequence[str]) -> str:
    return f"{cells[0]:<28}" + "".join(f"{cell:>13}" for cell in cells[1:])


def main() -> int:
    torch.set_num_threads(1)  # other processes disturb one thread least
    torch.manual_seed(0)
    network = build_model("cp_resnet")
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}")
    failures = budgets(network) + latencies(network)
    with tempfile.TemporaryDirectory() as folder:
        scopes(Path(folder))
    print(f"\n{failures} budgets missed or left more than 1 % unused")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
