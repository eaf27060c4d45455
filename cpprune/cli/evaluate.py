"""`cpprune evaluate`: accuracy, log loss and calibration of a model on a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpprune.cli.arguments import MODEL_HELP, PREDICTIONS_HELP, OneLineParser
from cpprune.cli.output import quantised_text, table
from shards.files.atomic import check_output
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.evaluation.dcase import Cost


def evaluate(argv: list[str]) -> int:
    """Measure a model on a split of a dataset."""
    parser = OneLineParser(
        "cpprune evaluate",
        description="Accuracy, log loss and calibration of a model on a split of a dataset; by class, "
        "device and city.",
    )
    parser.add_argument("model", type=Path, help=MODEL_HELP)
    parser.add_argument("--data", required=True, help="dataset folder or URL")
    parser.add_argument("--split", default="test", help="train, val or test (default: test)")
    parser.add_argument("--predictions", type=Path, help=PREDICTIONS_HELP)
    arguments = parser.parse_args(argv)
    if arguments.predictions:
        check_output(arguments.predictions, "--predictions")

    from cpprune.data.compatibility import open_for_model
    from cpprune.distributed import process_group
    from cpprune.evaluation.dcase import submission_names, write_submission
    from cpprune.evaluation.predict import evaluate_model
    from cpprune.export.classifier import cost, load_classifier, precision

    with process_group.joined("no") as accelerator:
        model = load_classifier(arguments.model, accelerator.device)
        split = open_for_model(arguments.data, model).split(arguments.split)
        report, log_prob = evaluate_model(model, split, accelerator.device)
        if process_group.rank() > 0:
            return 0
    costs = cost(model)
    report = {
        "split": split.name,
        "precision": precision(model),
        **{k: costs[k] for k in ("parameters", "macs", "operations", "bytes")},
        **report,
    }
    if arguments.predictions:
        write_submission(arguments.predictions, submission_names(split), model.classes, log_prob)
    print(to_json(report) if arguments.json else report_text(report, model.classes, costs))
    return 0


def report_text(report: dict[str, Any], classes: tuple[str, ...], cost: Cost) -> str:
    """Return the tables of an evaluation, and what the network costs."""
    from cpprune.evaluation.operations import operations_text

    form = quantised_text(report["precision"])
    parts = [
        f"{report['clips']:,} clips of {report['split']}: macro accuracy "
        f"{report['macro_accuracy']:.4f}, accuracy {report['accuracy']:.4f}, log loss "
        f"{report['log_loss']:.4f}, expected calibration error "
        f"{report['calibration']['expected_calibration_error']:.4f}\n"
        f"{cost['parameters']:,} parameters, {cost['macs']:,} MACs"
        f"{operations_text(cost['macs'], cost['operations'])}{f', {form}' if form else ''}"
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
