"""Arguments of commands that take no configuration."""

from __future__ import annotations

import argparse
import math
from typing import get_args

from cpprune.distill.config import EXPORTED_SUFFIXES, Average
from shards.cli import arguments
from shards.errors import UserError

_FILE = f"or file of `cpprune export` ({', '.join(EXPORTED_SUFFIXES)})"
MODEL_HELP = f"model folder, such as runs/NAME/model, one of `cpprune finetune`, {_FILE}"
PREDICTIONS_HELP = (
    "also write the predictions to this file, in DCASE's format: filename, scene_label, one "
    "probability per class"
)
VALUE_HELP = (
    "of the column by which `cpprune finetune` chose models, such as the device that recorded the audio "
    "(default: the general model)"
)


class OneLineParser(arguments.OneLineParser):
    """A parser whose errors are one line, without the usage; it knows --json and --debug."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description)
        self.add_argument("--json", action="store_true", help="one JSON object on standard output")
        self.add_argument("--debug", action="store_true", help="show tracebacks")


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the models that a command takes the average of, and how."""
    one = f"model folder, such as runs/NAME/model (of `cpprune finetune`, its folder general), {_FILE}"
    parser.add_argument("models", nargs="+", metavar="MODEL", help=one)
    parser.add_argument("--weights", help="weight of each model, such as 2,1 (default: equal)")
    parser.add_argument(
        "--average",
        choices=get_args(Average),
        default="logits",
        help="what is averaged: logits or probabilities (default: logits)",
    )


def model_weights(parsed: argparse.Namespace) -> list[float]:
    """Return the weight of each model.

    Raises:
        UserError: they are no numbers above 0, or not as many as there are models.
    """
    if parsed.weights is None:
        return [1.0] * len(parsed.models)
    try:
        weights = [float(word) for word in parsed.weights.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(parsed.models) or not all(0 < w < math.inf for w in weights):
        raise UserError(
            f"--weights {parsed.weights}: must be {len(parsed.models)} numbers above 0, such as "
            f"{','.join('1' for _ in parsed.models)}"
        )
    return weights
