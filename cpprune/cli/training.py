"""`cpprune train` and `cpprune prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpprune.config import ParsedRun, RunConfig, build_parser, parse
from shards.errors import InputError
from shards.files.atomic import check_output
from shards.files.documents import to_json
from shards.launcher import process_rank

FLAGS = {
    "json": "print the result as one JSON object on standard output",
    "debug": "one process, a few clips: overfit one batch, print shapes, show tracebacks",
}


def train(argv: list[str]) -> int:
    """Train a network."""
    parsed = _parse(
        "cpprune train", "Train a network; pruning is an event of it (prune.*).", FLAGS, argv
    )
    return _run(parsed)


def prune(argv: list[str]) -> int:
    """Train with a pruning schedule, or print the plan."""
    flags = {**FLAGS, "dry-run": "print what would be cut, and change nothing"}
    text = "Train with a pruning schedule: --init MODEL is cut and fine-tuned; without it, a fresh one."
    argv = [f"--prune.{a[2:]}" if a == "--plan" or a.startswith("--plan=") else a for a in argv]
    parsed = _parse("cpprune prune", text, flags, argv)
    if not parsed.config.prune.prunes:
        raise InputError(
            "prune.ratio is not set: say how much to cut with --prune.ratio 0.41 or --prune.budget "
            "'params<=47028', or use --config configs/prune.yaml"
        )
    if parsed.switches["dry-run"]:
        return _dry_run(parsed)
    return _run(parsed)


def _parse(prog: str, text: str, flags: dict[str, str], argv: list[str]) -> ParsedRun:
    parser = build_parser(prog, text, flags)
    return parse(parser, argv, list(flags))


def _run(parsed: ParsedRun) -> int:
    if parsed.switches["debug"]:
        from cpprune.training.overfit import overfit

        return overfit(parsed.config, parsed.explicit)
    from cpprune.training.loop import train as run_training

    result = run_training(parsed.config, parsed.explicit)
    if process_rank():
        return 0
    if "stopped" not in result:
        from cpprune.report.run_report import report_after_training

        report_after_training(parsed.config.run, parsed.config.data.path)
    if parsed.switches["json"]:
        print(to_json(result))
    return 0


def _dry_run(parsed: ParsedRun) -> int:
    import copy

    from cpprune.data.compatibility import open_for_model
    from cpprune.distributed.device import default_device
    from cpprune.evaluation.complexity import latency
    from cpprune.models.resize import layer_widths
    from cpprune.pruning.allocation import parse_budget
    from cpprune.pruning.calibration import measure_saliency
    from cpprune.pruning.plan import Plan, make_plan, preview, read_plan, write_plan
    from cpprune.pruning.saliency import MEASURES
    from cpprune.pruning.schedule import events, plan_arguments
    from cpprune.pruning.surgery import apply_plan
    from cpprune.training.create_model import planned_model

    config: RunConfig = parsed.config
    if config.prune.save_plan:
        check_output(Path(config.prune.save_plan), "--prune.save_plan")
    if config.prune.criterion in MEASURES and config.init is None:
        raise InputError(
            f"prune.criterion={config.prune.criterion} looks at a trained network and its data: give "
            "--init MODEL and --data.path"
        )
    device = default_device()
    model = planned_model(config, parsed.explicit).to(device)
    twin = copy.deepcopy(model)
    network = twin.network
    original = layer_widths(network)
    plans: list[Plan] = []
    for event in events(config.prune):
        saliency = None
        if config.prune.criterion in MEASURES:
            data = config.data
            dataset = open_for_model(data.path, model, data.cache, data.cache_bytes)
            train = dataset.split("train")
            saliency = measure_saliency(config.prune, twin, train, config.seed, device)
        if config.prune.plan:
            plan = read_plan(Path(config.prune.plan), network, model.input_shape)
        else:
            plan = make_plan(
                network,
                model.input_shape,
                original_widths=original,
                **plan_arguments(config.prune, event, config.seed),
                saliency=saliency,
            )
        apply_plan(network, model.input_shape, plan)
        plans.append(plan)
    limits = parse_budget(config.prune.budget) if config.prune.budget else []
    timed = any(limit.quantity == "latency" for limit in limits)
    shown = preview(model.network, model.input_shape, plans, latency if timed else None)
    if config.prune.save_plan:
        if len(plans) != 1:
            raise InputError(
                "prune.save_plan: only a plan of one step can be saved (prune.steps=1)"
            )
        write_plan(Path(config.prune.save_plan), plans[0])
    if parsed.switches["json"]:
        print(to_json(shown))
    else:
        _print_preview(shown)
    return 0


def _print_preview(shown: dict[str, Any]) -> None:
    print(
        f"{'layer':<28} {'width':>11} {'parameters':>17} {'MACs':>23}  {'score kept':>15} "
        f"{'score cut':>15}"
    )
    for layer in shown["layers"]:
        ranges = [
            f"{low:.3g} … {high:.3g}" if bounds else ""
            for bounds in (layer["score_kept"], layer["score_cut"])
            for low, high in [bounds or (0, 0)]
        ]
        arrows = [
            f"{layer[key + 'before']:,} → {layer[key + 'after']:,}"
            for key in ("", "parameters_", "macs_")
        ]
        print(
            f"{layer['name']:<28} {arrows[0]:>11} {arrows[1]:>17} {arrows[2]:>23}  {ranges[0]:>15} "
            f"{ranges[1]:>15}"
        )
    print()
    for layer, reason in shown["left_alone"].items():
        print(f"{layer} is left alone: it {reason}")
    print()
    for what in ("parameters", "macs"):
        before, after = shown["before"][what], shown["after"][what]
        print(f"{what:<30} {before:>12,} → {after:>12,}  ({after / before - 1:+.1%})")
    for dtype, size in shown["before"]["bytes"].items():
        print(f"{'bytes as ' + dtype:<30} {size:>12,} → {shown['after']['bytes'][dtype]:>12,}")
    if "latency_ms" in shown["before"]:
        before, after = shown["before"]["latency_ms"], shown["after"]["latency_ms"]
        print(
            f"{'latency in ms':<30} {before:>12.3f} → {after:>12.3f}  ({after / before - 1:+.1%})"
        )
