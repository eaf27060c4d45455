"""`cpprune sensitivity`: accuracy lost when each layer alone is pruned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import message, table
from shards.cli.arguments import whole_number
from shards.errors import UserError
from shards.files.atomic import writing
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.pruning.config import PruneConfig

RATIOS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"
CLIPS = 1000


def sensitivity(argv: list[str]) -> int:
    """Prune each layer alone by rising ratios, evaluate, and write the results as JSON, CSV and PNG."""
    parser = OneLineParser(
        "cpprune sensitivity",
        description="Prune each layer (with the layers coupled to it) alone by rising ratios, in a "
        "copy, and evaluate. Writes sensitivity.json (for prune.scope=sensitivity), .csv and .png.",
    )
    parser.add_argument("model", type=Path, help="model folder, such as runs/NAME/model")
    parser.add_argument("--data", required=True, help="dataset folder or URL")
    parser.add_argument("--split", default="val", help="train, val or test (default: val)")
    parser.add_argument("--ratios", default=RATIOS, help=f"pruning ratios (default: {RATIOS})")
    parser.add_argument(
        "--criterion", default="magnitude", help="see prune.criterion (default: magnitude)"
    )
    parser.add_argument(
        "--clips",
        type=whole_number,
        default=CLIPS,
        help=f"at most how many clips, always the same ones (default: {CLIPS:,})",
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write (default: sensitivity/ beside the model)"
    )
    arguments = parser.parse_args(argv)
    ratios = _ratios(arguments.ratios)
    if arguments.clips < 1:
        raise UserError(f"--clips {arguments.clips}: must be at least 1")

    from cpprune.evaluation.plots import draw_sensitivity, require_matplotlib

    require_matplotlib("cpprune sensitivity")

    from cpprune.data.compatibility import open_for_model
    from cpprune.distributed.device import default_device
    from cpprune.models import artifact
    from cpprune.models.quantized import dequantize, is_quantized
    from cpprune.pruning.importance import measure_saliency
    from cpprune.pruning.sensitivity import SENSITIVITY, measure_sensitivity, write_sensitivity
    from shards.files.ownership import claim

    folder = arguments.out or arguments.model.parent / "sensitivity"
    claim(folder, SENSITIVITY, "--out")
    pruning = _pruning(arguments.criterion)
    device = default_device()
    model = artifact.load(arguments.model, device)
    if is_quantized(model.network):
        dequantize(model.network)
        message(f"{arguments.model}: is quantised; what is pruned here is its network in float32")
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
    message(f"{folder}: sensitivity.json, sensitivity.csv, sensitivity.png")
    print(to_json(found) if arguments.json else _text(found))
    return 0


def _ratios(text: str) -> list[float]:
    try:
        ratios = sorted({float(part) for part in text.split(",")})
        if not 0 < ratios[0] <= ratios[-1] < 1:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--ratios {text!r}: must be numbers above 0 and below 1, separated by commas, such as "
            "0.25,0.5,0.75"
        ) from None
    return ratios


def _pruning(criterion: str) -> PruneConfig:
    from cpprune.pruning.config import PruneConfig

    try:
        return PruneConfig(criterion=criterion)
    except ValueError as error:
        raise UserError(str(error).replace("prune.criterion=", "--criterion ")) from None


def _text(found: dict[str, Any]) -> str:
    """Return macro accuracies: a row for each layer, a column for each ratio."""
    baseline = found["baseline"]
    rows = [
        [
            row["layer"],
            str(row["width"]),
            *(f"{value:.4f}" for value in row["macro_accuracy"]),
            "*" if row["layer"] == found["least_sensitive"] else "",
        ]
        for row in found["layers"]
    ]
    return (
        f"Unpruned: macro accuracy {baseline['macro_accuracy']:.4f}, log loss "
        f"{baseline['log_loss']:.4f} on {found['clips']:,} clips of {found['split']}. Macro accuracy "
        "with one layer pruned by each ratio:\n\n"
        f"{table(['layer', 'width', *(f'{r:g}' for r in found['ratios']), ''], rows)}\n"
        "* least sensitive: pruning it raises the log loss least, on average"
    )
