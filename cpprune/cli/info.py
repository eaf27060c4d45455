"""`cpprune info`: what a model costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpprune.cli.arguments import MODEL_HELP, OneLineParser
from cpprune.cli.output import table
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.evaluation.dcase import Complexity
    from cpprune.export.target import ExportedFile
    from cpprune.models.artifact import Model
    from cpprune.models.routed import RoutedModel

DESCRIPTION = (
    "Parameters, MACs, operations, bytes and receptive field of a model, and whether it meets DCASE's "
    "limits: cpprune info MODEL, or cpprune info --config FILE for the model of a configuration."
)
OPERATIONS = "products that are computed, functional ones too"
LATENCY_HELP = "also measure how long the network takes for one clip on this machine"


def info(argv: list[str]) -> int:
    """Print what a model, an exported file, or the model of a configuration costs."""
    model, as_json, timed = _model(argv)

    import torch

    from cpprune.models.artifact import Model
    from cpprune.models.routed import RoutedModel

    if isinstance(model, RoutedModel):
        print(_of_routed(model, as_json))
        return 0
    if not isinstance(model, Model):
        print(_of_file(model, as_json, timed))
        return 0

    from cpprune.audio.frontend import spec_to_json
    from cpprune.distributed.device import default_device
    from cpprune.evaluation.complexity import complexity, latency
    from cpprune.export.classifier import precision
    from cpprune.models.changes import changes
    from cpprune.models.quantized import quantization_of
    from cpprune.models.resize import layer_widths

    cost = complexity(model.network, model.input_shape)
    device = default_device()
    timed_ms = latency(model.network, model.input_shape, device) if timed else None
    widths, changed = layer_widths(model.network), changes(model.network)
    quantization = quantization_of(model.network)
    shown = {
        **model.metadata,
        "architecture": model.family,
        "precision": precision(model),
        **cost,
        "input_shape": list(model.input_shape),
        "classes": list(model.classes),
        "features": spec_to_json(model.features.spec),
        "widths": widths,
        **changed,
        **({"latency_ms": timed_ms} if timed else {}),
        **({"quantization": asdict(quantization)} if quantization else {}),
    }
    if as_json:
        print(to_json(shown))
        return 0
    where = f"{torch.get_num_threads()} thread(s)" if device.type == "cpu" else "the GPU"
    print(f"{model.family} for inputs of {' × '.join(map(str, model.input_shape))}{_how(model)}\n")
    print(table(["quantity", "value", ""], _rows(cost, where, timed_ms)))
    print("\nwidths: " + ", ".join(f"{name} {n}" for name, n in widths.items()))
    if gone := changed.get("removed_blocks"):
        print(f"removed blocks: {', '.join(gone)}")
    if attributes := changed.get("attributes"):
        print("attributes: " + ", ".join(f"{name} {n}" for name, n in attributes.items()))
    return 0


def _how(model: Model) -> str:
    """Return how a model computes if it is not in float32."""
    from cpprune.models.quantized import is_quantized

    if not is_quantized(model.network):
        return ""
    layers = len(model.network.fake_quantize.layers)
    return f", quantised (int8) in training: {layers} layers"


def _of_routed(model: RoutedModel, as_json: bool) -> str:
    """Return what is printed about routed models: the cost of each."""
    from cpprune.evaluation.complexity import complexity
    from cpprune.export.classifier import precision

    costs = {
        value: (precision(one), complexity(one.network, one.input_shape))
        for value, one in (("all others", model.general), *model.models.items())
    }
    if as_json:
        shown = {value: {"precision": form, **cost} for value, (form, cost) in costs.items()}
        general = shown.pop("all others")
        return to_json({"column": model.column, "general": general, "models": shown})
    rows = [
        [
            value,
            form,
            *(f"{n:,}" for n in (c["parameters"], c["macs"], c["bytes"]["fp16"])),
            _limits(c),
        ]
        for value, (form, c) in costs.items()
    ]
    head = [model.column, "precision", "parameters", "MACs", "bytes as fp16", "DCASE's limits"]
    return table(head, rows)


def _limits(cost: Complexity) -> str:
    met = cost["limits"]["macs"]["ok"] and cost["limits"]["bytes"]["ok"]["fp16"]
    return "met" if met else "exceeded"


def _of_file(model: ExportedFile, as_json: bool, timed: bool) -> str:
    """Return what is printed about an exported file."""
    from cpprune.export.check import median_ms

    found: dict[str, Any] = {**model.about(), **model.complexity()}
    found["input_shape"], size = list(model.input_shape), found["bytes"]
    if timed:
        found["latency_ms"] = median_ms(model)
    if as_json:
        return to_json(found)
    macs, limits = found["limits"]["macs"], found["limits"]["bytes"]
    rows = [
        ["parameters", f"{found['parameters']:,}", ""],
        ["MACs", f"{found['macs']:,}", _verdict(macs["ok"], macs["limit"])],
        [
            "bytes of the network",
            f"{size['network']:,}",
            _verdict(limits["ok"]["network"], limits["limit"]),
        ],
        ["bytes of the front end", f"{size['front_end']:,}", ""],
        ["bytes of the file", f"{size['file']:,}", ""],
    ]
    if timed:
        rows.append(["latency", f"{found['latency_ms']:.3f}", "ms for one clip on one thread"])
    shape = " × ".join(map(str, model.clip_shape))
    title = f"{found['architecture']}, {found['precision']}: {found['input']} of {shape}"
    return f"{title}\n\n{table(['quantity', 'value', ''], rows)}"


def _model(argv: list[str]) -> tuple[Model | ExportedFile | RoutedModel, bool, bool]:
    """Return the model that the command line names, and whether --json and --latency are given."""
    if argv and not argv[0].startswith("-"):
        parser = OneLineParser("cpprune info", description=DESCRIPTION)
        parser.add_argument("model", type=Path, help=MODEL_HELP)
        parser.add_argument("--latency", action="store_true", help=LATENCY_HELP)
        arguments = parser.parse_args(argv)
        from cpprune.export.classifier import load_classifier

        # Latency is that on one thread, for which exported files are told when they are loaded.
        model = load_classifier(arguments.model, threads=1 if arguments.latency else None)
        return model, arguments.json, arguments.latency
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


def _rows(cost: Complexity, where: str, latency_ms: float | None) -> list[list[str]]:
    from cpprune.evaluation.operations import differ

    macs, sizes = cost["limits"]["macs"], cost["limits"]["bytes"]
    rows = [
        ["parameters", f"{cost['parameters']:,}", ""],
        ["MACs", f"{cost['macs']:,}", _verdict(macs["ok"], macs["limit"])],
    ]
    if differ(cost["macs"], cost["operations"]):
        rows.append(["operations", f"{cost['operations']:,}", OPERATIONS])
    rows += [
        [f"bytes as {dtype}", f"{size:,}", _verdict(sizes["ok"][dtype], sizes["limit"])]
        for dtype, size in cost["bytes"].items()
    ]
    field = cost["receptive_field"]
    rows.append(["receptive field", f"{field['mel_bins']} bins × {field['frames']} frames", ""])
    if latency_ms is not None:
        rows.append(["latency", f"{latency_ms:.3f}", f"ms for one clip on {where}"])
    return rows


def _verdict(met: bool, limit: int) -> str:
    return f"{'within' if met else 'over'} DCASE's limit of {limit:,}"
