"""Arguments of commands that take no configuration."""

from __future__ import annotations

from shards.cli import arguments

PREDICTIONS_HELP = (
    "also write the predictions to this file, in DCASE's format: filename, scene_label, one "
    "probability per class"
)


class OneLineParser(arguments.OneLineParser):
    """A parser whose errors are one line, without the usage; it knows --json and --debug."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description)
        self.add_argument("--json", action="store_true", help="one JSON object on standard output")
        self.add_argument("--debug", action="store_true", help="show tracebacks")
