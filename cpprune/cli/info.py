"""`cpprune info`: what a model costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import table
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.models.artifact import Model

DESCRIPTION = (
    "Parameters, MACs, bytes and receptive field of a model, and whether it meets DCASE's limits: "
    "cpprune info MODEL, or cpprune info --config FILE for the model of a configuration."
)
LATENCY_HELP = "also measure how long the network takes for one clip on this machine"


def info(argv: list[str]) -> int:
    """Print what a model, or the model of a configuration, costs."""
    model, as_json, timed = _model(argv)

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
    where = f"{torch.get_num_threads()} thread(s)" if device.type == "cpu" else "the GPU"
    print(f"{cost['architecture']} for inputs of {' × '.join(map(str, model.input_shape))}\n")
    print(table(["quantity", "value", ""], _rows(cost, where)))
    print("\nwidths: " + ", ".join(f"{name} {n}" for name, n in cost["widths"].items()))
    return 0


def _model(argv: list[str]) -> tuple[Model, bool, bool]:
    """Return the model that the command line names, and whether --json and --latency are given."""
    if argv and not argv[0].startswith("-"):
        parser = OneLineParser("cpprune info", description=DESCRIPTION)
        parser.add_argument("model", type=Path, help="model folder, such as runs/NAME/model")
        parser.add_argument("--latency", action="store_true", help=LATENCY_HELP)
        arguments = parser.parse_args(argv)
        from cpprune.models import artifact

        return artifact.load(arguments.model), arguments.json, arguments.latency
    from cpprune.config import build_parser, parse
    from cpprune.training.create_model import planned_model

    flags = {
        "json": "print one JSON object on standard output",
        "latency": LATENCY_HELP,
        "debug": "show tracebacks",
    }
    parsed = parse(build_parser("cpprune info", DESCRIPTION, flags), argv, list(flags))
    model = planned_model(parsed.config, parsed.explicit)
    return model, parsed.switches["json"], parsed.switches["latency"]


def _rows(cost: dict[str, Any], where: str) -> list[list[str]]:
    macs, sizes = cost["limits"]["macs"], cost["limits"]["bytes"]
    rows = [
        ["parameters", f"{cost['parameters']:,}", ""],
        ["MACs", f"{cost['macs']:,}", _verdict(macs["ok"], macs["limit"])],
    ]
    rows += [
        [f"bytes as {dtype}", f"{size:,}", _verdict(sizes["ok"][dtype], sizes["limit"])]
        for dtype, size in cost["bytes"].items()
    ]
    field = cost["receptive_field"]
    rows.append(["receptive field", f"{field['mel_bins']} bins × {field['frames']} frames", ""])
    if "latency_ms" in cost:
        rows.append(["latency", f"{cost['latency_ms']:.3f}", f"ms for one clip on {where}"])
    return rows


def _verdict(met: bool, limit: int) -> str:
    return f"{'within' if met else 'over'} DCASE's limit of {limit:,}"
