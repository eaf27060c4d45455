"""`cpprune ensemble`: several models evaluated as one."""

from __future__ import annotations

from cpprune.cli.arguments import OneLineParser, add_models, model_weights
from cpprune.cli.evaluate import report_text
from shards.files.documents import to_json


def ensemble(argv: list[str]) -> int:
    """Measure the average of several models on a split of a dataset."""
    parser = OneLineParser(
        "cpprune ensemble",
        description="Accuracy, log loss and calibration of the average of several models on a split "
        "of a dataset; by class, device and city.",
    )
    add_models(parser)
    parser.add_argument("--data", required=True, help="dataset folder or URL")
    parser.add_argument("--split", default="test", help="train, val or test (default: test)")
    arguments = parser.parse_args(argv)
    weights = model_weights(arguments)

    import shards
    from cpprune.distill.teacher import Ensemble
    from cpprune.distributed import process_group
    from cpprune.evaluation.dcase import Cost
    from cpprune.evaluation.predict import evaluate_model
    from cpprune.export.classifier import cost, precision

    with process_group.joined("no") as accelerator:
        dataset = shards.open_dataset(arguments.data)
        split = dataset.split(arguments.split)
        device = accelerator.device
        together = Ensemble(arguments.models, weights, arguments.average, dataset, device)
        report, _ = evaluate_model(together, split, device)
        if process_group.rank() > 0:
            return 0
    costs = [cost(member.model) for member in together.members]
    total: Cost = {
        "parameters": sum(one["parameters"] for one in costs),
        "macs": sum(one["macs"] for one in costs),
        "operations": sum(one["operations"] for one in costs),
    }
    report = {
        "models": arguments.models,
        "split": split.name,
        "precision": precision(*(member.model for member in together.members)),
        **total,
        **report,
    }
    print(to_json(report) if arguments.json else report_text(report, together.classes, total))
    return 0
