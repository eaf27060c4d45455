"""Arguments of commands that take no configuration."""

from __future__ import annotations

from shards.cli import arguments


class OneLineParser(arguments.OneLineParser):
    """A parser whose mistakes are one line, without the usage; it knows --json and --debug."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description)
        self.add_argument("--json", action="store_true", help="one JSON object on standard output")
        self.add_argument("--debug", action="store_true", help="show tracebacks")
