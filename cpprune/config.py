"""The configuration of a run: every component's, in one tree, from files and the command line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from cpprune.audio.augment import AugmentConfig
from cpprune.audio.frontend import FeaturesConfig
from cpprune.data.loader import DataConfig
from cpprune.models.registry import ModelConfig
from cpprune.pruning.schedule import PruneConfig
from cpprune.runs.tracking import PACKAGES as TRACKERS
from cpprune.training.optim import OptimConfig
from shards.errors import InputError
from shards.files.documents import read_yaml

PRECISIONS = ("no", "bf16", "fp16")
MONITORS = ("macro_accuracy", "log_loss")
COMPILE = ("off", "auto", "graph")


@dataclass(kw_only=True)
class TrainConfig:
    """The training loop."""

    epochs: int = 50
    """epochs in all"""
    batch_size: int = 256
    """clips in a global batch, over all processes"""
    precision: str = "no"
    """no (float32), bf16 or fp16"""
    micro_batch_size: int = 0
    """most clips that a process takes through the network at once, to save memory: it accumulates
    gradients over as many micro-batches as its part of the batch needs, and batch statistics are those
    of a micro-batch of all processes; 0 is no limit"""
    clip_norm: float = 0.0
    """largest norm of the gradient; 0 is off"""
    monitor: str = "macro_accuracy"
    """which validation figure makes the best model: macro_accuracy or log_loss"""
    ema_decay: float = 0.0
    """decay of a moving average of the weights, then evaluated and saved, e.g. 0.999; 0 is off"""
    global_batch_norm: bool = True
    """batch statistics over all processes, so that their number does not change the result"""
    checkpoint_steps: int = 0
    """also write a checkpoint every this many steps; one is written after each epoch anyway"""
    keep_checkpoints: int = 2
    """how many checkpoints to keep: the last ones, and the one of the best model"""
    max_skipped: int = 10
    """steps that may be skipped because their gradient is not finite, before the run ends"""
    time_limit_minutes: float = 0.0
    """save and stop after this long, to go on later with the same command; 0 is no limit"""
    compile: str = "off"
    """where there is a GPU: auto compiles network and front end (torch.compile); graph also captures the
    whole step, from clips to updated weights, as a CUDA graph; off does neither. After a cut it is
    all made anew"""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1")
        limits = ("micro_batch_size", "checkpoint_steps", "max_skipped", "time_limit_minutes")
        for name in ("clip_norm", *limits):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)}: must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay={self.ema_decay}: must be at least 0 and below 1")
        _check_choice("train.precision", self.precision, PRECISIONS)
        _check_choice("train.monitor", self.monitor, MONITORS)
        _check_choice("train.compile", self.compile, COMPILE)
        if self.compile == "graph" and self.precision == "fp16":
            raise ValueError(
                "train.compile=graph: a step in fp16 waits for its loss scale and cannot be captured; "
                "set train.precision=bf16 or train.compile=auto"
            )


@dataclass(kw_only=True)
class RunConfig:
    """A run: one training from its start to its best model."""

    run: str = "runs/run"
    """folder of the run; variables of the environment are filled in, as in runs/$WANDB_RUN_ID"""
    seed: int = 0
    """of the order, the draws and the first weights"""
    init: str | None = None
    """model folder to start from; without it the network starts with fresh weights"""
    resume: str = "auto"
    """auto: go on where the run folder's last checkpoint ends; must: there has to be one; never:
    begin again and replace what is there"""
    track: str = "none"
    """who else is told what metrics.jsonl holds: none, wandb or tensorboard. wandb's group is the
    folder above the run's, or WANDB_RUN_GROUP; its project cpprune, or WANDB_PROJECT"""
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
        _check_choice("resume", self.resume, ("auto", "must", "never"))
        _check_choice("track", self.track, tuple(TRACKERS))
        if self.train.compile == "graph" and self.features.backend == "dali":
            raise ValueError(
                "train.compile=graph: DALI's pipeline cannot be captured with the step; set "
                "features.backend=torch or train.compile=auto"
            )
        if self.prune.prunes:
            last = self.prune.start_epoch + (self.prune.steps - 1) * self.prune.every_epochs
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


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r}: choose one of {', '.join(choices)}")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"optim.lr": …} for {"optim": {"lr": …}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in FREE_FORM:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def all_keys(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Return every dotted key of the configuration."""
    keys: list[str] = []
    for item in fields(kind):
        factory = item.default_factory
        if isinstance(factory, type) and is_dataclass(factory):
            keys += all_keys(factory, f"{prefix}{item.name}.")
        else:
            keys.append(f"{prefix}{item.name}")
    return keys


class ConfigParser(ArgumentParser):
    """A parser whose errors are one line that names the key and says what to do."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise InputError instead of printing the usage."""
        text = " ".join(message.split())
        wrong = re.match(r'Parser key "([\w.]+)": (.*)', text)
        if wrong and wrong[1] != "config":
            key, reason = wrong.groups()
            value = re.split(r"Got value: |Given value: ", reason)[-1]
            kinds = dict.fromkeys(re.findall(r"<class '(\w+)'>|\b(list)\[", reason))
            known = [_KINDS[kind] for pair in kinds for kind in pair if kind in _KINDS]
            if any("list" in pair for pair in kinds) or "List" in reason:
                known = ["a list of whole numbers, such as [18, 37, 75]"]
            if known:
                text = f"{key}={value}: must be {' or '.join(known)}"
        raise InputError(text) from None


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


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
