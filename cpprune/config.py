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

import jsonargparse
import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from cpprune.audio.config import AugmentConfig, FeaturesConfig
from cpprune.data.config import DataConfig
from cpprune.models.config import ModelConfig
from cpprune.pruning.config import PruneConfig
from cpprune.settings.choices import check_choices, choices_of, hints, wrong_choice
from cpprune.settings.renamed import KEYS, current_key
from cpprune.training.config import OptimConfig, TrainConfig
from shards.errors import UserError
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
        "data.in_memory",
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
    """A parser whose errors are one line that names the key and says what to do.

    Attributes:
        reads_files: whether --config is followed; without, the command line alone is parsed.
    """

    reads_files = True

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UserError instead of printing the usage."""
        text = " ".join(message.split()).removeprefix('Parser key "config": ')
        if wrong := re.match(r'.*Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)', text):
            text = _wrong_value(*wrong.groups())
        elif unknown := re.match(r"unrecognized arguments: --([^\s=]*)", text):
            text = unknown_key(unknown[1])
        elif unknown := re.match(r"Group '(\w+)' does not accept option '(.+)'", text):
            text = unknown_key(".".join(unknown.groups()))
        raise UserError(text) from None


def _wrong_value(key: str, value: str) -> str:
    hint = key_types()[key]
    if choices := choices_of(hint):
        word = {"off", "no"}.intersection(choices)
        if value == "False" and word:  # YAML's reading of it
            return f'{key}: write "{word.pop()}" in quotes, which YAML reads as false without'
        return wrong_choice(key, value, choices)
    kind = next(kind for kind in _KINDS if kind == hint or kind in get_args(hint))
    return f"{key}={value}: must be {_KINDS[kind]}"


_KINDS: dict[Any, str] = {
    dict[str, Any]: "a mapping of names to values, such as {depth: 3}",
    list[int]: "a list of whole numbers, such as [18, 37, 75]",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text; put it in quotes",
}


class _ConfigFile(jsonargparse.ActionConfigFile):  # type: ignore[name-defined,misc]
    """--config FILE: checked before jsonargparse reads it, so that errors name the file."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option: str | None = None) -> None:
        if not parser.reads_files:
            return
        path = Path(values)
        if not path.is_file():
            raise UserError(f"--config {values}: no such file")
        kind: Any = dict[str, Any] | None
        example = "it must hold keys and values, such as `optim: {lr: 1e-3}`"
        settings = flatten(read_yaml(path, kind, remedy=example) or {})
        for key in settings:
            if current_key(key) not in key_types():
                raise UserError(f"{path}: {unknown_key(key)}")
        if not settings.keys().isdisjoint(KEYS):
            values = _under_current_names(path.read_text())
        super().__call__(parser, cfg, values, option)


def _under_current_names(text: str) -> str:
    """Return the YAML of settings with renamed keys, every value as it was written."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    for room, settings in root.value:
        room.value = current_key(room.value)
        for name, _ in settings.value if isinstance(settings, yaml.MappingNode) else ():
            name.value = current_key(f"{room.value}.{name.value}").removeprefix(f"{room.value}.")
    return str(yaml.serialize(root))


def build_parser(prog: str, description: str, flags: dict[str, str]) -> ConfigParser:
    """Return a parser that knows every key of `RunConfig`, --config, --print_config and flags.

    Args:
        prog: how the command is called.
        description: what it does.
        flags: names of switches, such as "json", with their help.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ConfigParser(
        prog=prog,
        description=description,
        usage=f"{prog} [--config FILE ...] [--KEY VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action=_ConfigFile, help="YAML file of settings; repeatable, later wins"
    )
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(RunConfig, None)
    return parser


@dataclass(frozen=True)
class ParsedRun:
    """A configuration and how it was given.

    Attributes:
        config: the whole tree.
        explicit: the dotted keys that were set in a file or on the command line.
        switches: the command's own flags.
    """

    config: RunConfig
    explicit: frozenset[str]
    switches: dict[str, bool]


def parse(parser: ConfigParser, argv: Sequence[str], flags: Sequence[str]) -> ParsedRun:
    """Read the configuration from files and the command line.

    Raises:
        UserError: an unknown key, a value that is not allowed, a file that is not there: one line.
    """
    words = [_current_word(word) for word in argv]
    try:
        namespace = parser.parse_args(words)
        explicit = _explicit_keys(parser, words)
        values = namespace.as_dict()
        ways = {"prune.ratio", "prune.budget", "prune.plan"}
        if len(ways & explicit) > 1:
            # On the command line, one way to say how much is cut replaces another in a file.
            parser.reads_files = False
            typed = ways & _explicit_keys(parser, words)
            if len(typed) == 1:
                values["prune"].update({key.removeprefix("prune."): None for key in ways - typed})
        config = RunConfig(
            **{
                name: _COMPONENTS[name](**values[name]) if name in _COMPONENTS else values[name]
                for name in (item.name for item in fields(RunConfig))
            }
        )
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from None
    switches = {flag: bool(values[flag.replace("-", "_")]) for flag in flags}
    return ParsedRun(config, explicit, switches)


def _explicit_keys(parser: ConfigParser, words: Sequence[str]) -> frozenset[str]:
    found = parser.parse_args(words, defaults=False).as_dict()
    return frozenset(flatten(found)) & key_types().keys()


def _current_word(word: str) -> str:
    """Return an argument under its key's name of today.

    Raises:
        UserError: it names a group of keys, whose value would be read as a file.
    """
    name, equals, value = word.partition("=")
    key = name.removeprefix("--")
    if key == name:
        return word
    nested_by_wandb = equals and value.lstrip().startswith("{")
    if key in _COMPONENTS and not nested_by_wandb:
        raise UserError(unknown_key(key))
    return f"--{current_key(key)}{equals}{value}"


_COMPONENTS: dict[str, Any] = {
    item.name: item.default_factory
    for item in fields(RunConfig)
    if is_dataclass(item.default_factory)
}


def unknown_key(key: str) -> str:
    """Return the message for a key that is not one, with the nearest that is."""
    keys = all_keys()
    if key in _COMPONENTS:
        some = next(name for name in keys if name.startswith(f"{key}."))
        return f"{key} stands for several keys; give them one by one, such as {some}"
    near = difflib.get_close_matches(key, keys, n=1)
    if not near:
        last = {name.rpartition(".")[2]: name for name in keys}
        near = [last[k] for k in difflib.get_close_matches(key.rpartition(".")[2], last, n=1)]
    hint = f": did you mean {near[0]}?" if near else "; --help lists them all"
    return f"unknown configuration key {key}{hint}"
