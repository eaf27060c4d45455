"""The configuration of a run: every component's, in one tree, from files and the command line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from jsonargparse import ArgumentParser, set_parsing_settings

from cpprune.audio.config import AugmentConfig, FeaturesConfig
from cpprune.data.config import DataConfig
from cpprune.models.config import ModelConfig
from cpprune.pruning.config import PruneConfig
from cpprune.settings.choices import check_choices, choices_of, hints, wrong_choice
from cpprune.training.config import OptimConfig, TrainConfig
from shards.errors import InputError
from shards.files.documents import read_yaml


@dataclass(kw_only=True)
class RunConfig:
    """A run: one training from its start to its best model."""

    run: str = "runs/run"
    """run folder; environment variables are expanded, as in runs/$WANDB_RUN_ID"""
    seed: int = 0
    """random seed of data order, augmentation and initialisation"""
    init: str | None = None
    """model folder to start from (default: fresh weights)"""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: resume from the run folder's last checkpoint if there is one; must: an error if there is
    none; never: start again and replace what is there"""
    track: Literal["none", "wandb", "tensorboard"] = "none"
    """experiment tracker: none, wandb or tensorboard. The group in wandb is the name of the folder
    above the run's, or WANDB_RUN_GROUP; the project is cpprune, or WANDB_PROJECT"""
    data: DataConfig = field(default_factory=DataConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self) -> None:
        self.run = os.path.expandvars(self.run)
        if "$" in self.run:
            raise ValueError(f"run={self.run}: there is no such variable in the environment")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")
        check_choices(self)
        if self.train.compile == "graph" and self.features.backend == "dali":
            raise ValueError(
                "train.compile=graph: DALI's pipeline cannot be captured with the step; set "
                "features.backend=torch or train.compile=auto"
            )
        if self.prune.prunes:
            last = self.prune.last_epoch
            if last >= self.train.epochs:
                raise ValueError(
                    f"prune: the last of {self.prune.steps} steps would come at epoch {last}, but "
                    f"the run ends after {self.train.epochs} (train.epochs): no step would be "
                    "trained after it"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain values."""
        return asdict(self)


# Keys that change neither what is learned nor what it is learned from.
FREE_KEYS = frozenset(
    {
        "run",
        "resume",
        "track",
        "data.path",
        "data.cache",
        "data.cache_bytes",
        "data.workers",
        "data.resident",
        "data.record_ids",
        "prune.save_plan",
        "train.keep_checkpoints",
        "train.checkpoint_steps",
        "train.max_skipped",
        "train.time_limit_minutes",
    }
)

# Keys that name a file whose contents change what is learned.
FILE_KEYS = ("prune.plan", "prune.sensitivity")


# Keys whose value is a mapping of the user's own.
FREE_FORM = frozenset({"model.arguments"})


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"optim.lr": …} for {"optim": {"lr": …}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in FREE_FORM:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@cache
def key_types() -> dict[str, Any]:
    """Return every dotted key of the configuration with its type."""
    types: dict[str, Any] = {}
    for name, hint in hints(RunConfig).items():
        if is_dataclass(hint):
            types |= {f"{name}.{key}": own for key, own in hints(hint).items()}
        else:
            types[name] = hint
    return types


def all_keys() -> list[str]:
    """Return every dotted key of the configuration."""
    return list(key_types())


class ConfigParser(ArgumentParser):
    """A parser whose errors are one line that names the key and says what to do."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise InputError instead of printing the usage."""
        text = " ".join(message.split())
        wrong = re.match(r'Parser key "([\w.]+)": (.*)', text)
        if wrong and wrong[1] in key_types():
            key, reason = wrong.groups()
            value = re.split(r"Got value: |Given value: ", reason)[-1]
            hint = key_types()[key]
            if choices := choices_of(hint):
                text = wrong_choice(key, value, choices)
            else:
                kind = next(kind for kind in _KINDS if kind == hint or kind in get_args(hint))
                text = f"{key}={value}: must be {_KINDS[kind]}"
        raise InputError(text) from None


_KINDS: dict[Any, str] = {
    dict[str, Any]: "a mapping of names to values, such as {depth: 3}",
    list[int]: "a list of whole numbers, such as [18, 37, 75]",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text; put it in quotes",
}


def build_parser(prog: str, description: str, flags: dict[str, str]) -> ConfigParser:
    """Return a parser that knows every key of `RunConfig`, --config, --print_config and flags.

    Args:
        prog: how the command is called.
        description: what it does.
        flags: names of switches, such as "json", with their help.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ConfigParser(
        prog=prog, description=description, usage=f"{prog} [--config FILE ...] [--KEY VALUE ...]"
    )
    parser.add_argument(
        "--config", action="config", help="file of settings; repeatable, later wins"
    )
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(RunConfig, None)
    return parser


def parse(parser: ConfigParser, argv: Sequence[str], flags: Sequence[str]) -> ParsedRun:
    """Read the configuration from files and the command line.

    Raises:
        InputError: an unknown key, a value that is not allowed, a file that is not there: one line.
    """
    given = given_keys(argv, [*flags, "config", "print_config", "help"])
    try:
        namespace = parser.parse_args(list(argv))
        switches = {flag: bool(namespace.pop(flag.replace("-", "_"))) for flag in flags}
        namespace.pop("config", None)
        values = namespace.as_dict()
        _let_the_command_line_choose(values["prune"], argv)
        config = RunConfig(
            **{
                key: _COMPONENTS[key](**value) if isinstance(value, dict) else value
                for key, value in values.items()
            }
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None
    return ParsedRun(config, frozenset(given), switches)


def _let_the_command_line_choose(prune: dict[str, Any], argv: Sequence[str]) -> None:
    """Drop what a file says of how much is cut, if the command line says it in another way."""
    ways = ("ratio", "budget", "plan")
    flags = {argument.partition("=")[0] for argument in argv}
    here = [way for way in ways if f"--prune.{way}" in flags]
    if len(here) == 1:
        prune.update({way: None for way in ways if way not in here})


@dataclass(frozen=True)
class ParsedRun:
    """A configuration and how it was given.

    Attributes:
        config: the whole tree.
        given: the dotted keys that were set in a file or on the command line.
        switches: the command's own flags.
    """

    config: RunConfig
    given: frozenset[str]
    switches: dict[str, bool]


_COMPONENTS: dict[str, Any] = {
    item.name: item.default_factory
    for item in fields(RunConfig)
    if is_dataclass(item.default_factory)
}


def given_keys(argv: Sequence[str], flags: Sequence[str]) -> set[str]:
    """Return the keys set on this command line and in the files it names.

    Raises:
        InputError: a key that does not exist, with the nearest that does.
    """
    known = set(all_keys())
    given: set[str] = set()
    for position, argument in enumerate(argv):
        if not argument.startswith("--"):
            continue
        key, equals, value = argument[2:].partition("=")
        key = next((free for free in FREE_FORM if key.startswith(f"{free}.")), key)
        if key == "config":
            name = value if equals else (argv[position + 1] if position + 1 < len(argv) else "")
            given |= _keys_of_file(name, known)
        elif key in known:
            given.add(key)
        elif key in _COMPONENTS and equals and value.lstrip().startswith("{"):
            continue  # as wandb gives nested parameters
        elif key not in flags:
            raise InputError(unknown_key(key))
    return given


def _keys_of_file(name: str, known: set[str]) -> set[str]:
    path = Path(name)
    if not path.is_file():
        raise InputError(f"--config {name}: no such file")
    kind: Any = dict[str, Any] | None
    example = "it must hold keys and values, such as `optim: {lr: 1e-3}`"
    given = flatten(read_yaml(path, kind, remedy=example) or {})
    for key in given:
        if key not in known:
            raise InputError(f"{path}: {unknown_key(key)}")
    return set(given)


def unknown_key(key: str) -> str:
    """Return the message for a key that is not one, with the nearest that is."""
    keys = all_keys()
    if key in _COMPONENTS:
        some = next(name for name in keys if name.startswith(f"{key}."))
        return f"{key} stands for several keys; give them one by one, such as {some}"
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if not near:
        last = {name.rsplit(".", 1)[-1]: name for name in keys}
        near = [last[k] for k in difflib.get_close_matches(key.rsplit(".", 1)[-1], last, n=1)]
    hint = f": did you mean {near[0]}?" if near else "; --help lists them all"
    return f"unknown configuration key {key}{hint}"
