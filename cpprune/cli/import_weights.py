"""`cpprune import`: a state dict becomes a model folder."""

from __future__ import annotations

from pathlib import Path

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import message
from shards.cli.arguments import whole_number
from shards.files.documents import to_json


def import_weights(argv: list[str]) -> int:
    """Turn a state dict of the seed project, or of CP-JKU's code, into a model folder."""
    from cpprune.audio.config import PRESETS
    from cpprune.models.convert import import_state_dict
    from cpprune.settings.renamed import current_value

    parser = OneLineParser(
        "cpprune import",
        description="Convert a CP-ResNet state dict (.pth) into a model folder. The widths are read "
        "from the tensors; no code in the file is executed.",
    )
    parser.add_argument("file", type=Path, help="state dict, written by torch.save")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--preset",
        default="cpjku22_256",
        type=lambda name: current_value("features.preset", name),
        choices=PRESETS,
        help="front end that the network was trained with (default: cpjku22_256)",
    )
    parser.add_argument(
        "--classes", help="class names, separated by commas (default: TAU's ten scenes)"
    )
    parser.add_argument(
        "--rho", type=whole_number, default=4, help="receptive-field parameter (default: 4)"
    )
    arguments = parser.parse_args(argv)
    names = arguments.classes.split(",") if arguments.classes else None
    out: Path = arguments.out
    model = import_state_dict(arguments.file, out, arguments.preset, names, arguments.rho)
    parameters = sum(p.numel() for p in model.network.parameters())
    message(f"{out}: {parameters:,} parameters, {len(model.classes)} classes")
    if arguments.json:
        found = {"model": str(out), "parameters": parameters, "classes": list(model.classes)}
        print(to_json(found))
    return 0
