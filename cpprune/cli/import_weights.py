"""`cpprune import`: weights of others become a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import message
from shards.cli.arguments import whole_number
from shards.errors import UserError
from shards.files.documents import to_json

if TYPE_CHECKING:
    from cpprune.models.artifact import Model

DESCRIPTION = (
    "Convert weights into a model folder: a state dict, or a checkpoint of Lightning. No code in it is "
    "run. The widths of a CP-ResNet are read from its tensors. For any other network, describe "
    "it and its front end as `cpprune train` takes them: --config FILE, or keys such as --model.name "
    "cp_mobile --features.preset dcase24."
)


def import_weights(argv: list[str]) -> int:
    """Turn the weights of a CP-ResNet, or of a network that is described, into a model folder."""
    from cpprune.audio.config import PRESETS
    from cpprune.models.convert import import_state_dict
    from cpprune.settings.renamed import current_value

    parser = OneLineParser("cpprune import", description=DESCRIPTION)
    parser.add_argument("file", type=Path, help="written by torch.save, or .safetensors")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--preset",
        type=lambda name: current_value("features.preset", name),
        choices=PRESETS,
        help="front end that a CP-ResNet was trained with (default: cpjku22_256)",
    )
    parser.add_argument(
        "--classes", help="class names, separated by commas (default: TAU's ten scenes)"
    )
    parser.add_argument(
        "--rho", type=whole_number, help="receptive-field parameter of a CP-ResNet (default: 4)"
    )
    arguments, described = parser.parse_known_args(argv)
    names = arguments.classes.split(",") if arguments.classes else None
    out: Path = arguments.out
    if described:
        if argv[0].startswith("-"):
            raise UserError("name the file first: cpprune import FILE --out FOLDER --config …")
        for word in ("preset", "rho"):
            if getattr(arguments, word) is not None:
                key = {"preset": "features.preset", "rho": "model.rho"}[word]
                raise UserError(f"--{word}: give --{key}, since the network is described by keys")
        model = _described(arguments.file, out, names, described)
    else:
        preset, rho = arguments.preset or "cpjku22_256", arguments.rho
        model = import_state_dict(arguments.file, out, preset, names, 4 if rho is None else rho)
    parameters = sum(p.numel() for p in model.network.parameters())
    message(f"{out}: {parameters:,} parameters, {len(model.classes)} classes")
    if arguments.json:
        found = {"model": str(out), "parameters": parameters, "classes": list(model.classes)}
        print(to_json(found))
    return 0


def _described(file: Path, out: Path, names: list[str] | None, words: list[str]) -> Model:
    """Write and return the model that the configuration describes, with the weights in a file."""
    from cpprune.config import build_parser, parse
    from cpprune.models.convert import save_imported
    from cpprune.training.create_model import planned_model
    from shards.sources.tau2022 import LABELS

    if not file.is_file():
        raise UserError(f"{file}: no such file")
    parser = build_parser("cpprune import", DESCRIPTION, {})
    parsed = parse(parser, [*words, "--init", str(file)], [])
    model = planned_model(parsed.config, parsed.explicit, names or LABELS)
    save_imported(model, file, out)
    for note in model.notes:
        message(note)
    return model
