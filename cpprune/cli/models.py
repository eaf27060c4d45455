"""`cpprune evaluate`, `info` and `import`: what is done with a finished model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cpprune.cli.arguments import OneLineParser
from shards.cli.arguments import whole_number
from shards.files.atomic import check_output
from shards.files.documents import to_json

LATENCY_HELP = "also measure how long the network takes for one clip on this machine"
PREDICTIONS_HELP = (
    "also write them to this file, in DCASE's form: filename, scene_label, probabilities"
)


def evaluate(argv: list[str]) -> int:
    """Measure a model on a split of a dataset."""
    parser = OneLineParser(
        "cpprune evaluate", description="Measure a model on a split of a dataset."
    )
    parser.add_argument("model", type=Path, help="model folder, such as runs/NAME/model")
    parser.add_argument("--data", required=True, help="dataset folder, or its URL")
    parser.add_argument("--split", default="test", help="train, val or test (default: test)")
    parser.add_argument("--predictions", type=Path, help=PREDICTIONS_HELP)
    arguments = parser.parse_args(argv)
    if arguments.predictions:
        check_output(arguments.predictions, "--predictions")

    from cpprune.data.compatibility import open_for_model
    from cpprune.distributed import process_group
    from cpprune.evaluation.complexity import complexity
    from cpprune.evaluation.dcase import submission_names, write_submission
    from cpprune.evaluation.predict import evaluate_model
    from cpprune.models import artifact

    with process_group.joined("no") as accelerator:
        model = artifact.load(arguments.model, accelerator.device)
        split = open_for_model(arguments.data, model).split(arguments.split)
        report, log_prob = evaluate_model(model, split, accelerator.device)
        if process_group.rank() > 0:
            return 0
    cost = complexity(model.network, model.input_shape)
    report = {
        "split": split.name,
        **{k: cost[k] for k in ("parameters", "macs", "bytes")},
        **report,
    }
    if arguments.predictions:
        write_submission(arguments.predictions, submission_names(split), model.classes, log_prob)
    if arguments.json:
        print(to_json(report))
    else:
        _print_report(report, model.classes)
    return 0


def _print_report(report: dict[str, Any], classes: tuple[str, ...]) -> None:
    print(
        f"{report['clips']:,} clips of {report['split']}: macro accuracy "
        f"{report['macro_accuracy']:.4f}, accuracy {report['accuracy']:.4f}, log loss "
        f"{report['log_loss']:.4f}, calibration error "
        f"{report['calibration']['expected_calibration_error']:.4f}"
    )
    print(f"{report['parameters']:,} parameters, {report['macs']:,} MACs")
    for title, key in (
        ("class", "per_class"),
        ("device", "per_device"),
        ("device group", "per_group"),
        ("city", "per_city"),
    ):
        if report[key]:
            print(f"\n{title:<20} {'clips':>8} {'accuracy':>9} {'log loss':>9}")
            for name, row in report[key].items():
                print(
                    f"{name:<20} {row['clips']:>8,} {row['accuracy']:>9.4f} {row['log_loss']:>9.4f}"
                )
    print("\nconfusion (rows: true, columns: predicted)")
    for name, row in zip(classes, report["confusion"], strict=True):
        print(f"{name:<20} " + " ".join(f"{n:>5}" for n in row))


def info(argv: list[str]) -> int:
    """Say what a model, or the model of a configuration, costs."""
    if argv and not argv[0].startswith("-"):
        parser = OneLineParser("cpprune info", description="Say what a model costs.")
        parser.add_argument("model", type=Path, help="model folder; or give --config FILE instead")
        parser.add_argument("--latency", action="store_true", help=LATENCY_HELP)
        arguments = parser.parse_args(argv)
        from cpprune.models import artifact

        model = artifact.load(arguments.model)
        as_json, timed = arguments.json, arguments.latency
    else:
        from cpprune.config import build_parser, parse
        from cpprune.training.create_model import planned_model

        flags = {
            "json": "one JSON object on standard output",
            "latency": LATENCY_HELP,
            "debug": "show tracebacks",
        }
        text = "Say what a model costs: cpprune info MODEL, or the model of a configuration."
        parsed = parse(build_parser("cpprune info", text, flags), argv, list(flags))
        model = planned_model(parsed.config, parsed.explicit)
        as_json, timed = parsed.switches["json"], parsed.switches["latency"]

    import torch

    from cpprune.audio.frontend import spec_to_json
    from cpprune.distributed.device import default_device
    from cpprune.evaluation.complexity import complexity, latency
    from cpprune.models.resize import layer_widths

    cost = {
        **model.metadata,
        "architecture": model.family,
        **complexity(model.network, model.input_shape),
        "input_shape": list(model.input_shape),
        "classes": list(model.classes),
        "features": spec_to_json(model.features.spec),
        "widths": layer_widths(model.network),
    }
    device = default_device()
    if timed:
        cost["latency_ms"] = latency(model.network, model.input_shape, device)
    if as_json:
        print(to_json(cost))
        return 0
    limits = cost["limits"]
    field = cost["receptive_field"]
    print(f"{cost['architecture']} for inputs of {' × '.join(map(str, model.input_shape))}")
    print(f"parameters       {cost['parameters']:>12,}")
    verdict = "within" if limits["macs"]["ok"] else "over"
    print(f"MACs             {cost['macs']:>12,}  {verdict} DCASE's {limits['macs']['limit']:,}")
    for dtype, size in cost["bytes"].items():
        verdict = "within" if limits["bytes"]["ok"][dtype] else "over"
        print(f"bytes as {dtype:<7} {size:>12,}  {verdict} DCASE's {limits['bytes']['limit']:,}")
    print(f"receptive field  {field['mel_bins']} bins × {field['frames']} frames")
    if timed:
        where = f"{torch.get_num_threads()} thread(s)" if device.type == "cpu" else "the GPU"
        print(f"latency          {cost['latency_ms']:>12.3f}  ms for one clip on {where}")
    print("widths           " + ", ".join(f"{name} {n}" for name, n in cost["widths"].items()))
    return 0


def import_weights(argv: list[str]) -> int:
    """Turn a state dict of the seed project, or of CP-JKU's code, into a model folder."""
    from cpprune.audio.config import PRESETS
    from cpprune.models.convert import import_state_dict
    from cpprune.settings.renamed import current_value

    parser = OneLineParser(
        "cpprune import",
        description="Turn a CP-ResNet state dict (.pth) into a model folder. The widths are read from "
        "the tensors; the file is read without running any code in it.",
    )
    parser.add_argument("file", type=Path, help="state dict, written by torch.save")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--preset",
        default="cpjku22_256",
        type=lambda name: current_value("features.preset", name),
        choices=PRESETS,
        help="front end it was trained with",
    )
    parser.add_argument(
        "--classes", help="class names, comma-separated (default: TAU's ten scenes)"
    )
    parser.add_argument(
        "--rho", type=whole_number, default=4, help="receptive-field parameter (default: 4)"
    )
    arguments = parser.parse_args(argv)
    names = arguments.classes.split(",") if arguments.classes else None
    out: Path = arguments.out
    model = import_state_dict(arguments.file, out, arguments.preset, names, arguments.rho)
    parameters = sum(p.numel() for p in model.network.parameters())
    print(
        f"{arguments.out}: {parameters:,} parameters, {len(model.classes)} classes", file=sys.stderr
    )
    if arguments.json:
        about = {"parameters": parameters, "classes": list(model.classes)}
        print(json.dumps({"model": str(out), **about}))
    return 0
