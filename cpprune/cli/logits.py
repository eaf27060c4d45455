"""`cpprune logits`: the averaged logits of models on a split, as a file that training learns from."""

from __future__ import annotations

from pathlib import Path

from cpprune.cli.arguments import OneLineParser, add_models, model_weights
from cpprune.cli.output import message
from shards.errors import UserError
from shards.files.atomic import check_output
from shards.files.documents import to_json


def logits(argv: list[str]) -> int:
    """Write the averaged logits of models on a split."""
    parser = OneLineParser(
        "cpprune logits",
        description="Averaged logits of one or more models for every clip of a split, by key, as a "
        ".npz file for distill.teachers.",
    )
    add_models(parser)
    parser.add_argument("--data", required=True, help="dataset folder or URL")
    parser.add_argument("--split", default="train", help="train, val or test (default: train)")
    parser.add_argument("--out", type=Path, required=True, help="file to write, ending in .npz")
    arguments = parser.parse_args(argv)
    weights = model_weights(arguments)
    if arguments.out.suffix != ".npz":
        raise UserError(f"--out {arguments.out}: the name must end in .npz")
    check_output(arguments.out, "--out")

    import shards
    from cpprune.distill.logits_file import write_logits
    from cpprune.distill.teacher import Ensemble
    from cpprune.distributed import collectives, process_group
    from cpprune.evaluation.predict import predict_model

    with process_group.joined("no") as accelerator:
        device = accelerator.device
        dataset = shards.open_dataset(arguments.data)
        split = dataset.split(arguments.split)
        ensemble = Ensemble(arguments.models, weights, arguments.average, dataset, device)
        found = predict_model(ensemble, split, device)
        collectives.run_on_rank_0(lambda: write_logits(arguments.out, split, found), device)
        if process_group.rank() > 0:
            return 0
    report = {"out": str(arguments.out), "split": split.name, "clips": len(split)}
    if arguments.json:
        print(to_json({**report, "models": arguments.models}))
    else:
        message(f"{arguments.out}: logits of {len(split):,} clips of {split.name}")
    return 0
