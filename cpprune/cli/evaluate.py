"""`cpprune evaluate`: accuracy, log loss and calibration of a model on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpprune.cli.arguments import PREDICTIONS_HELP, OneLineParser
from cpprune.cli.output import table
from shards.files.atomic import check_output
from shards.files.documents import to_json


def evaluate(argv: list[str]) -> int:
    """Measure a model on a split of a dataset."""
    parser = OneLineParser(
        "cpprune evaluate",
        description="Accuracy, log loss and calibration of a model on a split of a dataset; by class, "
        "device and city.",
    )
    parser.add_argument("model", type=Path, help="model folder, such as runs/NAME/model")
    parser.add_argument("--data", required=True, help="dataset folder or URL")
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
    print(to_json(report) if arguments.json else _text(report, model.classes))
    return 0


def _text(report: dict[str, Any], classes: tuple[str, ...]) -> str:
    parts = [
        f"{report['clips']:,} clips of {report['split']}: macro accuracy "
        f"{report['macro_accuracy']:.4f}, accuracy {report['accuracy']:.4f}, log loss "
        f"{report['log_loss']:.4f}, expected calibration error "
        f"{report['calibration']['expected_calibration_error']:.4f}\n"
        f"{report['parameters']:,} parameters, {report['macs']:,} MACs"
    ]
    for title, key in (
        ("class", "per_class"),
        ("device", "per_device"),
        ("device group", "per_group"),
        ("city", "per_city"),
    ):
        rows = [
            [name, f"{row['clips']:,}", f"{row['accuracy']:.4f}", f"{row['log_loss']:.4f}"]
            for name, row in report[key].items()
        ]
        if rows:
            parts.append(table([title, "clips", "accuracy", "log loss"], rows))
    counts = [
        [f"{number} {name}", *map(str, row)]
        for number, (name, row) in enumerate(zip(classes, report["confusion"], strict=True))
    ]
    head = ["confusion: true class, then clips by predicted class", *map(str, range(len(classes)))]
    return "\n\n".join([*parts, table(head, counts)])
