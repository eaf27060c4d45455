"""`cpprune prune`: training with a pruning schedule, or the plan alone (--dry-run)."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpprune.cli.output import table
from cpprune.cli.train import FLAGS, run
from cpprune.config import ParsedRun, build_parser, parse
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.criteria import CRITERIA
from shards.errors import UserError
from shards.files.atomic import check_output
from shards.files.documents import to_json

if TYPE_CHECKING:
    import torch

    from cpprune.models.artifact import Model
    from cpprune.pruning.plan import Plan


def prune(argv: list[str]) -> int:
    """Train with a pruning schedule, or print the plan."""
    flags = {**FLAGS, "dry-run": "print what would be pruned, and change nothing"}
    text = "Prune and fine-tune the model --init; without it, prune a fresh network while it is trained."
    argv = [f"--prune.{a[2:]}" if a == "--plan" or a.startswith("--plan=") else a for a in argv]
    parsed = parse(build_parser("cpprune prune", text, flags), argv, list(flags))
    if not parsed.config.prune.prunes:
        raise UserError(
            "prune.ratio is not set: say how much to prune with --prune.ratio 0.41, --prune.budget "
            "'params<=47028' or --prune.blocks 1, or use --config configs/prune.yaml"
        )
    return _dry_run(parsed) if parsed.switches["dry-run"] else run(parsed)


def _dry_run(parsed: ParsedRun) -> int:
    from cpprune.distributed.device import default_device
    from cpprune.pruning.budget import parse_budget
    from cpprune.pruning.plan import blocks_removed, remarks, write_plan
    from cpprune.pruning.preview import preview
    from cpprune.training.create_model import planned_model

    settings = parsed.config.prune
    if settings.save_plan:
        check_output(Path(settings.save_plan), "--prune.save_plan")
    if _needs_data(settings) and parsed.config.init is None:
        by_blocks = f"prune.blocks={settings.blocks}"
        what = by_blocks if settings.blocks else f"prune.criterion={settings.criterion}"
        raise UserError(
            f"{what} needs a trained network and its data: give --init MODEL and --data.path"
        )
    device = default_device()
    model = planned_model(parsed.config, parsed.explicit).to(device)
    plans = _plans(parsed, model, device)
    limits = parse_budget(settings.budget) if settings.budget else []
    shown = preview(model.network, model.input_shape, plans, limits)
    if settings.save_plan:
        if len(plans) != 1:
            raise UserError("prune.save_plan: only a plan of one step can be saved (prune.steps=1)")
        write_plan(Path(settings.save_plan), plans[0])
    removed = [line for plan in plans for line in blocks_removed(plan)]
    print(to_json(shown) if parsed.switches["json"] else _text(shown, removed))
    original = {layer["name"]: layer["before"] for layer in shown["layers"]}
    for line in remarks(plans[-1], original):
        print(f"cpprune: {line}", file=sys.stderr)
    return 0


def _needs_data(settings: PruneConfig) -> bool:
    return bool(settings.blocks) or CRITERIA[settings.criterion].needs_data


def _plans(parsed: ParsedRun, model: Model, device: torch.device) -> list[Plan]:
    """Return the plan of every pruning step, each made for what the one before has left."""
    from cpprune.data.compatibility import open_for_model
    from cpprune.data.loader import selected_split
    from cpprune.models.resize import layer_widths
    from cpprune.pruning.pruner import Pruner
    from cpprune.pruning.surgery import apply_plan

    settings, data = parsed.config.prune, parsed.config.data
    train = None
    if _needs_data(settings):
        dataset = open_for_model(data.path, model, data.cache, data.cache_bytes)
        train = selected_split(dataset, "train", data.only)
    pruned = copy.deepcopy(model)
    pruner = Pruner(settings, pruned, train, parsed.config.seed, device)
    original = layer_widths(pruned.network)
    plans = []
    for event in pruner.events:
        plan = pruner.planner(event, original)()
        apply_plan(pruned.network, model.input_shape, plan)
        plans.append(plan)
    return plans


def _text(shown: dict[str, Any], removed: list[str]) -> str:
    from cpprune.evaluation.operations import differ
    from cpprune.pruning.budget import QUANTITIES

    head = ["layer", "width", "parameters", "MACs", "scores kept", "scores pruned"]
    layers = [
        [
            layer["name"],
            *(
                _arrow(layer[f"{k}before"], layer[f"{k}after"])
                for k in ("", "parameters_", "macs_")
            ),
            *(_range(layer[key]) for key in ("score_kept", "score_cut")),
        ]
        for layer in shown["layers"]
    ]
    unpruned = [f"{name} is not pruned: it {why}" for name, why in shown["left_alone"].items()]
    unpruned += removed
    before, after = shown["before"], shown["after"]
    keys = {"parameters": "parameters", "MACs": "macs"}
    if any(differ(side["macs"], side["operations"]) for side in (before, after)):
        keys["operations"] = "operations"
    pairs = {name: (before[key], after[key]) for name, key in keys.items()}
    pairs |= {f"bytes as {k}": (size, after["bytes"][k]) for k, size in before["bytes"].items()}
    for quantity in QUANTITIES.values():
        of_forms = before.get(quantity.key, {})
        pairs |= {f"{quantity.label}@{k}": (b, after[quantity.key][k]) for k, b in of_forms.items()}
    if "latency_ms" in before:
        pairs[QUANTITIES["latency"].label] = (before["latency_ms"], after["latency_ms"])
    rows = [[name, _arrow(b, a), f"{a / b - 1:+.1%}"] for name, (b, a) in pairs.items()]
    whole = table(["network", "before → after", "change"], rows)
    return "\n".join([table(head, layers), "", *unpruned, *[""] * bool(unpruned), whole])


def _arrow(before: float, after: float) -> str:
    return f"{_number(before)} → {_number(after)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _range(bounds: tuple[float, float] | None) -> str:
    return f"{bounds[0]:.3g} … {bounds[1]:.3g}" if bounds else ""
