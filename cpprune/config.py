"""The configuration of a run: every component's, in one tree, from files and the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import jsonargparse
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from cpprune.audio.config import AugmentConfig, FeaturesConfig
from cpprune.data.config import DataConfig
from cpprune.distill.config import UNCUT, DistillConfig
from cpprune.models.config import ModelConfig
from cpprune.pruning.config import PruneConfig
from cpprune.settings.choices import check_choices, choices_of, hints, wrong_choice
from cpprune.settings.renamed import KEYS, current_key
from cpprune.training.config import OptimConfig, QuantizeConfig, TrainConfig
from shards.errors import UserError
from shards.files.documents import read_yaml
from shards.suggest import closest


@dataclass(kw_only=True)
class RunConfig:
    """A run: one training from its start to its best model."""

    run: str = "runs/run"
    """run folder; environment variables are expanded, as in runs/$WANDB_RUN_ID"""
    seed: int = 0
    """random seed of data order, augmentation and initialisation"""
    init: str | None = None
    """model folder to start from, or a state dict (.pth, .safetensors) for the network of model.*
    (default: fresh weights)"""
    init_head: Literal["keep", "new"] = "keep"
    """classifier of init: keep it, for the same classes, or make a new one for the dataset's"""
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
    distill: DistillConfig = field(default_factory=DistillConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)

    def __post_init__(self) -> None:
        self.run = os.path.expandvars(self.run)
        if "$" in self.run:
            raise ValueError(f"run={self.run}: there is no such variable in the environment")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")
        check_choices(self)
        if self.init_head == "new" and self.init is None:
            raise ValueError("init_head=new: there is no init whose classifier it could replace")
        if self.optim.kept_lr_factor != 1 and self.init_head == "keep":
            raise ValueError(
                f"optim.kept_lr_factor={self.optim.kept_lr_factor}: has no effect without init_head=new"
            )
        if self.train.captures and self.features.backend == "dali":
            raise ValueError(
                f"train.compile={self.train.compile}: DALI's pipeline cannot be captured with the step; "
                "set features.backend=torch or train.compile=auto"
            )
        if UNCUT in self.distill.teachers and not self.prune.prunes:
            raise ValueError(
                f"distill.teachers: {UNCUT} is the network before it is pruned, but nothing is: set "
                f"prune.ratio or prune.budget, or give a folder of that name as ./{UNCUT}"
            )
        if self.prune.prunes:
            last = self.prune.last_epoch
            if last >= self.train.epochs:
                raise ValueError(
                    f"prune: the last of {self.prune.steps} steps would come at epoch {last}, but "
                    f"the run ends after {self.train.epochs} (train.epochs): no step would be "
                    "trained after it"
                )
        self._check_quantize()

    def _check_quantize(self) -> None:
        start = self.quantize.start_epoch
        if start is None:
            return
        key = f"quantize.start_epoch={start}"
        if start >= self.train.epochs:
            raise ValueError(f"{key}: the run ends after {self.train.epochs} epochs (train.epochs)")
        if self.prune.prunes and start <= self.prune.last_epoch:
            raise ValueError(
                f"{key}: the network is pruned at epoch {self.prune.last_epoch} (prune.*), and can only "
                "be quantised after that"
            )
        if start == 0 and self.init is None:
            raise ValueError(
                f"{key}: batch normalisation has no statistics yet, and keeps those that it has then: "
                "give init, or a later epoch"
            )
        if self.train.captures:
            raise ValueError(
                f"{key}: a quantised step cannot be captured; set train.compile=auto, which captures "
                "steps until then"
            )

    def to_dict(self) -> dict[str, object]:
        """Return the tree as plain values."""
        return asdict(self)


# The fields that are dataclasses of their own.
COMPONENTS: dict[str, type] = {
    name: kind
    for name, kind in hints(RunConfig).items()
    if isinstance(kind, type) and is_dataclass(kind)
}

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
        "distill.cache",
        "prune.save_plan",
        "train.keep_checkpoints",
        "train.checkpoint_steps",
        "train.max_skipped",
        "train.time_limit_minutes",
    }
)

# Keys that name files, or folders of them, whose contents change what is learned.
FILE_KEYS = ("prune.plan", "prune.sensitivity", "augment.impulse_responses", "distill.teachers")


# Keys whose value is a mapping of the user's own.
FREE_FORM = frozenset({"model.arguments", "prune.ratios"})


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return {"optim.lr": …} for {"optim": {"lr": …}}."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in FREE_FORM:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@cache
def key_types() -> dict[str, object]:
    """Return every dotted key of the configuration with its type."""
    types: dict[str, object] = {}
    for name, hint in hints(RunConfig).items():
        if name in COMPONENTS:
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
    for kind in (hint, *get_args(hint)):
        if get_origin(kind) is list:
            return f"{key}={value}: must be {_LISTS[get_args(kind)[0]]}"
    parts = [part for kind in (hint, *get_args(hint)) for part in (kind, get_origin(kind))]
    kind = next(kind for kind in _KINDS if kind in parts)
    return f"{key}={value}: must be {_KINDS[kind]}"


_KINDS: dict[type, str] = {
    dict: "a mapping of names to values, such as {depth: 3}",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text; put it in quotes",
}
_LISTS: dict[type, str] = {
    int: "a list of whole numbers, such as [18, 37, 75]",
    float: "a list of numbers, such as [2, 1]",
    str: "a list of texts, such as [a, b]",
}


class _ConfigFile(jsonargparse.ActionConfigFile):  # type: ignore[name-defined,misc]
    """--config FILE: checked before jsonargparse reads it, so that errors name the file."""

    def __call__(
        self, parser: ConfigParser, cfg: Namespace, values: str, option: str | None = None
    ) -> None:
        if not parser.reads_files:
            return
        path = Path(values)
        if not path.is_file():
            raise UserError(f"--config {values}: no such file")
        kind: Any = dict[str, object] | None  # None: an empty file
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


def build_parser(
    prog: str, description: str, flags: dict[str, str], options: Mapping[str, str] | None = None
) -> ConfigParser:
    """Return a parser that knows every key of `RunConfig`, --config, --print_config, flags and options.

    Args:
        prog: how the command is called.
        description: what it does.
        flags: names of switches, such as "json", with their help.
        options: names of the command's own options, which take a text, with their help.
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
    for name, text in (options or {}).items():
        parser.add_argument(f"--{name}", type=str, help=text)
    parser.add_class_arguments(RunConfig, None)
    return parser


@dataclass(frozen=True)
class ParsedRun:
    """A configuration and how it was given.

    Attributes:
        config: the whole tree.
        explicit: the dotted keys that were set in a file or on the command line.
        switches: the command's own flags.
        options: the command's own options.
    """

    config: RunConfig
    explicit: frozenset[str]
    switches: dict[str, bool]
    options: Mapping[str, str | None] = field(default_factory=dict)


def parse(
    parser: ConfigParser, argv: Sequence[str], flags: Sequence[str], options: Sequence[str] = ()
) -> ParsedRun:
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
                name: COMPONENTS[name](**values[name]) if name in COMPONENTS else values[name]
                for name in (item.name for item in fields(RunConfig))
            }
        )
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from None
    switches = {flag: bool(values[flag.replace("-", "_")]) for flag in flags}
    own = {option: values[option.replace("-", "_")] for option in options}
    return ParsedRun(config, explicit, switches, own)


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
    if key in COMPONENTS and not nested_by_wandb:
        raise UserError(unknown_key(key))
    return f"--{current_key(key)}{equals}{value}"


def unknown_key(key: str) -> str:
    """Return the message for a key that is not one, with the nearest that is."""
    keys = all_keys()
    if key in COMPONENTS:
        some = next(name for name in keys if name.startswith(f"{key}."))
        return f"{key} stands for several keys; give them one by one, such as {some}"
    last = {name.rpartition(".")[2]: name for name in keys}
    near = closest(key, keys) or last.get(closest(key.rpartition(".")[2], last) or "")
    hint = f": did you mean {near}?" if near else "; --help lists them all"
    return f"unknown configuration key {key}{hint}"
