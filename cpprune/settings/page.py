"""The page of docs/ that lists every key of the configuration.

python -m cpprune.settings.page docs/configuration.md
"""

from __future__ import annotations

import json
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin

from docstring_parser import parse_from_object

from cpprune.config import COMPONENTS, FREE_KEYS, RunConfig
from cpprune.settings.choices import choices_of, hints
from cpprune.settings.renamed import KEYS, LAST_VERSION, VALUES

INTRODUCTION = """\
# Configuration

<!-- Made from the dataclasses by `make docs`; do not edit. -->

`cpprune train` and `cpprune prune` take every key from YAML files (`--config FILE`, repeatable) and from
the command line (`--optim.lr 1e-3`); the later one wins. `--print_config` prints the result. In YAML,
the choices `"off"` and `"no"` need their quotes. A resumed run may change the keys marked with †, and
`train.epochs`, with which a finished run goes on; all others have to stay the same.
"""

TABLE = "| key | type | default | |\n|---|---|---|---|"


def render() -> str:
    """Return the page in Markdown: one table for each part of the configuration."""
    parts = [INTRODUCTION]
    for room, config in {"": RunConfig, **COMPONENTS}.items():
        title = f"`{room}`: {_lower(config.__doc__ or '')}" if room else "The run"
        rows = _rows(config, f"{room}." if room else "")
        parts.append("\n".join([f"## {title}\n", TABLE, *rows, ""]))
    parts.append(
        "\n".join(
            [
                "## Renamed\n",
                f"These old names work until version {LAST_VERSION}, with a warning.\n",
                "| old | now |\n|---|---|",
                *(f"| `{old}` | `{new}` |" for old, new in KEYS.items()),
                *(
                    f"| `{key}={old}` | `{key}={new}` |"
                    for key, values in VALUES.items()
                    for old, new in values.items()
                ),
                "",
            ]
        )
    )
    return "\n".join(parts)


def _rows(kind: type, prefix: str) -> list[str]:
    texts = {item.arg_name: item.description or "" for item in parse_from_object(kind).params}
    types = hints(kind)
    rows = []
    for item in fields(kind):
        if is_dataclass(types[item.name]):
            continue
        key = prefix + item.name
        text = " ".join(texts[item.name].split()).replace("|", "\\|")
        free = " †" if key in FREE_KEYS else ""
        rows.append(f"| `{key}`{free} | {_type(types[item.name])} | {_default(item)} | {text} |")
    return rows


def _type(hint: object) -> str:
    if choices := choices_of(hint):
        return ", ".join(f"`{choice}`" for choice in choices)
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    kind = kinds[0] if NoneType in get_args(hint) else hint
    if get_origin(kind) is dict:
        return "mapping"
    if get_origin(kind) is list:
        return f"list of {get_args(kind)[0].__name__}"
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _default(item: Field[object]) -> str:
    value = item.default if item.default_factory is MISSING else item.default_factory()
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _lower(sentence: str) -> str:
    first = sentence.strip().splitlines()[0].rstrip(".")
    return first[0].lower() + first[1:]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render())
