"""`cpprune soup`: the weights of several models, averaged into one."""

from __future__ import annotations

from pathlib import Path

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import message, table
from shards.cli.arguments import whole_number
from shards.errors import UserError
from shards.files.documents import to_json


def soup(argv: list[str]) -> int:
    """Average the weights of models of one network."""
    parser = OneLineParser(
        "cpprune soup",
        description="Average the weights of models of one network that started from the same weights, "
        "such as fine-tuned ones (Wortsman et al., Model soups, 2022), into a model folder. The "
        "statistics of batch normalisation are computed anew from training clips.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="model folder, such as runs/NAME/model"
    )
    parser.add_argument("--data", required=True, help="dataset folder or URL")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--greedy",
        action="store_true",
        help="go through the models by falling macro accuracy on the validation split, and keep each "
        "with which the average is at least as accurate (default: all models)",
    )
    parser.add_argument(
        "--clips",
        type=whole_number,
        help="training clips that the statistics of batch normalisation are computed from (default: "
        "all)",
    )
    arguments = parser.parse_args(argv)
    if arguments.clips is not None and arguments.clips < 1:
        raise UserError(f"--clips {arguments.clips}: must be at least 1")

    import shards
    from cpprune.data.compatibility import check_compatible
    from cpprune.distributed import collectives, process_group
    from cpprune.models.artifact import MODEL
    from cpprune.training.soup import doubts, load_ingredients, make_soup, save_soup
    from shards.files.ownership import claim

    out: Path = arguments.out
    claim(out, MODEL, "--out")
    if out.resolve() in [Path(path).resolve() for path in arguments.models]:
        raise UserError(f"--out {out}: is one of the models; choose another folder")
    with process_group.joined("no") as accelerator:
        device = accelerator.device
        ingredients = load_ingredients(arguments.models, device)
        dataset = shards.open_dataset(arguments.data)
        check_compatible(dataset, ingredients[0].model)
        leads = process_group.rank() == 0
        for text in doubts(ingredients) if leads else []:
            message(f"cpprune: warning: {text}")
        say = message if leads else lambda text: None
        made, tasted = make_soup(
            ingredients,
            dataset,
            device,
            greedy=arguments.greedy,
            clips=arguments.clips,
            say=say,
        )
        collectives.run_on_rank_0(lambda: save_soup(made, dataset, out), device)
        if not leads:
            return 0
    taken = [one.path for one in made.ingredients]
    if arguments.json:
        alone = [{"model": one.path, "val": one.val} for one in tasted]
        print(to_json({"model": str(out), "soup": taken, "val": made.val, "alone": alone}))
        return 0
    rows = [
        [path, f"{val['macro_accuracy']:.4f}", f"{val['log_loss']:.4f}", used]
        for path, val, used in (
            *((one.path, one.val or {}, "yes" if one.path in taken else "no") for one in tasted),
            (str(out), made.val, ""),
        )
    ]
    print(table(["model", "val macro accuracy", "val log loss", "in the soup"], rows))
    message(f"{out}: the average of {len(taken)} of {len(tasted)} models")
    return 0
