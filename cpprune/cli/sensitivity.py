"""`cpprune sensitivity`: what cutting each layer alone costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cpprune.cli.arguments import OneLineParser
from shards.cli.arguments import whole_number
from shards.errors import InputError
from shards.files.atomic import writing
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.pruning.config import PruneConfig

RATIOS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"
CLIPS = 1000


def sensitivity(argv: list[str]) -> int:
    """Cut each layer alone by rising parts, evaluate, and write figures, table and picture."""
    parser = OneLineParser(
        "cpprune sensitivity",
        description="Cut each layer (with all that hangs together with it) alone by rising parts, in "
        "a copy, and evaluate. Writes sensitivity.json (for prune.scope=sensitivity), .csv and .png.",
    )
    parser.add_argument("model", type=Path, help="model folder, such as runs/NAME/model")
    parser.add_argument("--data", required=True, help="dataset folder, or its URL")
    parser.add_argument("--split", default="val", help="train, val or test (default: val)")
    parser.add_argument("--ratios", default=RATIOS, help=f"parts to cut (default: {RATIOS})")
    parser.add_argument("--criterion", default="magnitude", help="see prune.criterion (magnitude)")
    parser.add_argument(
        "--clips",
        type=whole_number,
        default=CLIPS,
        help=f"a fixed slice of at most so many ({CLIPS:,})",
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write (default: sensitivity/ beside it)"
    )
    arguments = parser.parse_args(argv)
    ratios = _ratios(arguments.ratios)
    if arguments.clips < 1:
        raise InputError(f"--clips {arguments.clips}: must be at least 1")

    from cpprune.evaluation.plots import draw_sensitivity, require_matplotlib

    require_matplotlib("cpprune sensitivity")

    from cpprune.data.compatibility import open_for_model
    from cpprune.distributed.device import default_device
    from cpprune.models import artifact
    from cpprune.pruning.calibration import measure_saliency
    from cpprune.pruning.sensitivity import SENSITIVITY, measure_sensitivity, write_sensitivity
    from shards.files.ownership import claim

    folder = arguments.out or arguments.model.parent / "sensitivity"
    claim(folder, SENSITIVITY, "--out")
    pruning = _pruning(arguments.criterion)
    device = default_device()
    model = artifact.load(arguments.model, device)
    dataset = open_for_model(arguments.data, model)
    split = dataset.split(arguments.split)
    found = measure_sensitivity(
        model,
        split,
        criterion=pruning.criterion,
        ratios=ratios,
        clips=arguments.clips,
        saliency=measure_saliency(pruning, model, dataset.split("train"), 0, device),
    )
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        write_sensitivity(found, folder)
        draw_sensitivity(found, folder / "sensitivity.png")
    print(f"{folder}: sensitivity.json, sensitivity.csv, sensitivity.png", file=sys.stderr)
    print(to_json(found) if arguments.json else table(found))
    return 0


def _ratios(text: str) -> list[float]:
    try:
        ratios = sorted({float(part) for part in text.split(",")})
        if not 0 < ratios[0] <= ratios[-1] < 1:
            raise ValueError
    except ValueError:
        raise InputError(
            f"--ratios {text!r}: must be numbers above 0 and below 1, separated by commas, such as "
            "0.25,0.5,0.75"
        ) from None
    return ratios


def _pruning(criterion: str) -> PruneConfig:
    from cpprune.pruning.config import Criterion, PruneConfig

    try:
        return PruneConfig(criterion=cast(Criterion, criterion))
    except ValueError as error:
        raise InputError(str(error).replace("prune.criterion=", "--criterion ")) from None


def table(found: dict[str, Any]) -> str:
    """Return macro accuracies, one line a layer, one column a ratio; the least sensitive is marked."""
    baseline = found["baseline"]
    length = max(len(row["layer"]) for row in found["layers"])
    lines = [
        f"whole network: macro accuracy {baseline['macro_accuracy']:.4f}, log loss "
        f"{baseline['log_loss']:.4f} on {found['clips']:,} clips of {found['split']}; macro accuracy "
        "with a part of one layer cut:",
        "",
        f"  {'layer':<{length}} {'width':>6} " + " ".join(f"{r:>6g}" for r in found["ratios"]),
    ]
    lines.append("-" * len(lines[-1]))
    for row in found["layers"]:
        mark = "*" if row["layer"] == found["least_sensitive"] else " "
        accuracies = " ".join(f"{value:>6.4f}" for value in row["macro_accuracy"])
        lines.append(f"{mark} {row['layer']:<{length}} {row['width']:>6} {accuracies}")
    lines.append("* the least sensitive: its cuts raise the log loss least, on average")
    return "\n".join(lines)
