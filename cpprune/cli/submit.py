"""`cpprune submit`: a submission to the DCASE challenge's task 1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import message, table
from shards.errors import UserError
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.export.target import ExportedFile
    from cpprune.models.artifact import Model
    from cpprune.models.routed import RoutedModel
    from shards.reader import Dataset


def submit(argv: list[str]) -> int:
    """Write a submission."""
    parser = OneLineParser(
        "cpprune submit",
        description="Write a submission to the DCASE challenge's task 1: an installable package with "
        "the functions that the organisers call, predictions, accuracy and complexity of each system.",
    )
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="model folders, or folders of cpprune finetune: one for each system, at most four",
    )
    parser.add_argument("--label", required=True, help="name and affiliation, such as Schmid_CPJKU")
    parser.add_argument("--data", required=True, help="dataset folder of the development set")
    parser.add_argument(
        "--evaluation",
        type=Path,
        help="folder of the evaluation set, with evaluation_setup/fold1_test.csv and audio/; without "
        "it, no predictions are written",
    )
    parser.add_argument(
        "--year",
        type=int,
        choices=(2024, 2025),
        default=2025,
        help="of the challenge (default: 2025): file names in predictions start with audio/, or in 2024 "
        "do not",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args(argv)

    from dataclasses import asdict

    import shards
    from cpprune.export.classifier import load_classifier
    from cpprune.submission.package import write_package

    dataset = shards.open_dataset(arguments.data)
    for path in arguments.models:
        _check_system(path, load_classifier(path), dataset)
    done = write_package(
        arguments.out,
        arguments.label,
        arguments.models,
        dataset.split("test"),
        arguments.evaluation,
        arguments.year,
    )
    if arguments.json:
        print(to_json({"out": str(arguments.out), "systems": [asdict(system) for system in done]}))
        return 0
    rows = [
        [s.name, f"{s.accuracy:.4f}", f"{s.macs:,}", f"{s.bytes:,}", f"{s.predictions:,}"]
        for s in done
    ]
    print(table(["system", "test accuracy", "MACs", "bytes", "predictions"], rows))
    message(f"submission: {arguments.out}")
    if not arguments.evaluation:
        message("no output.csv: give --evaluation when the evaluation set is there")
    return 0


def _check_system(path: Path, model: Model | ExportedFile | RoutedModel, dataset: Dataset) -> None:
    """Raise UserError unless the organisers can call a model as a system of a submission."""
    from cpprune.data.compatibility import check_fits
    from cpprune.export.classifier import precision
    from cpprune.models.artifact import Model
    from cpprune.models.factory import is_factory
    from cpprune.models.routed import GENERAL, RoutedModel

    if not isinstance(model, Model | RoutedModel):
        raise UserError(f"{path}: is an exported file; give the model folder")
    if isinstance(model, RoutedModel) and model.column != "device":
        raise UserError(
            f"{path}: chooses models by {model.column}, but the organisers give only the device of a "
            f"clip: submit a folder of cpprune finetune --per device, or {path / GENERAL}"
        )
    check_fits(dataset, model)
    if model.sample_rate is None:
        raise UserError(f"{path}: takes images, not audio")
    if "int8" in precision(model):
        raise UserError(
            f"{path}: is quantised (int8), but the networks of a submission are counted as "
            "float32 or float16: submit the model that it was trained from"
        )
    parts = (model.general, *model.models.values()) if isinstance(model, RoutedModel) else (model,)
    for family in (part.family for part in parts):
        if is_factory(family):
            raise UserError(
                f"{path}: its network is made by {family}, which the package of a submission does not "
                "hold: submit a network of cpprune's own (model.name)"
            )
