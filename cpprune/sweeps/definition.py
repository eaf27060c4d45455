"""The definition of a sweep: a YAML file in the format of Weights & Biases, read and checked.

The format: https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cpprune.sweeps.command import DEFAULT_COMMAND, check_command
from cpprune.sweeps.parameters import Parameter, read_parameter
from shards.errors import UserError
from shards.files.documents import read_yaml

METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
# Metrics of an epoch in metrics.jsonl.
METRICS = ("val_macro_accuracy", "val_accuracy", "val_log_loss", "train_loss")
KEYS = {"method", "metric", "parameters", "program", "command", "early_terminate", "run_cap"}
# Of use to a server only; ignored.
SERVER_KEYS = {"name", "description", "project", "entity"}


@dataclass(frozen=True)
class EarlyTermination:
    """Successive halving, as wandb's `hyperband` does it.

    After `first` epochs, and again each time their number has grown `eta`-fold, a trial continues only
    if it is among the best 1/eta of the trials that have come as far.
    """

    first: int
    eta: int


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        method: grid, random or bayes.
        metric: what is optimised: a metric of an epoch in metrics.jsonl.
        goal: minimize or maximize.
        parameters: varied and constant ones.
        program: the script that a trial starts.
        command: that starts a trial, with macros.
        early: when trials end early, or None.
        run_cap: number of trials in all, or None.
    """

    method: str
    metric: str
    goal: str
    parameters: tuple[Parameter, ...]
    program: str
    command: tuple[str, ...]
    early: EarlyTermination | None
    run_cap: int | None


def read_sweep(path: Path) -> Sweep:
    """Read a sweep.

    Raises:
        UserError: the file cannot be read, or a key of it is wrong or not supported.
    """
    tree = _read(path)
    try:
        return _sweep(tree)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, object]:
    remedy = "it must hold a sweep, as the files in configs/sweeps do"
    return read_yaml(path, dict[str, object], remedy=remedy)


def _sweep(tree: dict[str, object]) -> Sweep:
    unknown = sorted(tree.keys() - KEYS - SERVER_KEYS)
    if unknown:
        raise ValueError(f"{unknown[0]}: is not supported; the keys are {', '.join(sorted(KEYS))}")
    method = _choice(tree, "method", METHODS)
    metric = tree.get("metric")
    if not isinstance(metric, dict) or metric.keys() - {"name", "goal"}:
        raise ValueError("metric: must be like {name: val_macro_accuracy, goal: maximize}")
    parameters = tuple(_parameters(tree.get("parameters"), ()))
    names = [parameter.name for parameter in parameters]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"parameters.{name}: is given twice")
        if name == "run":
            raise ValueError("parameters.run: leave it out; each trial has a folder of its own")
    if method == "grid":
        parameters = tuple(parameter.listed() for parameter in parameters)
    program = tree.get("program")
    if not isinstance(program, str):
        raise ValueError("program: must be the script that a trial starts, such as launch/prune.py")
    command = tree.get("command", list(DEFAULT_COMMAND))
    if not isinstance(command, list) or not command:
        raise ValueError("command: must be a list of words")
    words = tuple(str(word) for word in command)
    check_command(words)
    return Sweep(
        method=method,
        metric=_choice(metric, "name", METRICS, "metric."),
        goal=_choice({"goal": "minimize", **metric}, "goal", GOALS, "metric."),
        parameters=parameters,
        program=program,
        command=words,
        early=_early(tree.get("early_terminate")),
        run_cap=_whole(tree, "run_cap") if "run_cap" in tree else None,
    )


def _choice(
    tree: Mapping[str, object], key: str, choices: tuple[str, ...], prefix: str = ""
) -> str:
    value = tree.get(key)
    if value not in choices:
        raise ValueError(f"{prefix}{key}={value}: choose one of {', '.join(choices)}")
    return str(value)


def _whole(tree: Mapping[str, object], key: str, least: int = 1, prefix: str = "") -> int:
    value = tree.get(key)
    if type(value) is not int or value < least:
        raise ValueError(f"{prefix}{key}={value}: must be a whole number, at least {least}")
    return value


def _parameters(tree: object, above: tuple[str, ...]) -> Iterator[Parameter]:
    where = ".".join(("parameters", *above))
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{where}: must map names to the values to try")
    for name, value in tree.items():
        path = (*above, str(name))
        if isinstance(value, dict) and "parameters" in value:
            if len(value) > 1:
                raise ValueError(f"{where}.{name}: `parameters` must be its only key")
            yield from _parameters(value["parameters"], path)
        else:
            yield read_parameter(path, value)


def _early(tree: object) -> EarlyTermination | None:
    if tree is None:
        return None
    prefix = "early_terminate."
    if not isinstance(tree, dict) or tree.get("type") != "hyperband":
        raise ValueError("early_terminate: only {type: hyperband, …} is supported")
    unknown = sorted(tree.keys() - {"type", "min_iter", "max_iter", "s", "eta"})
    if unknown:
        raise ValueError(f"{prefix}{unknown[0]}: is not supported")
    eta = _whole({"eta": 3, **tree}, "eta", 2, prefix)
    if ("min_iter" in tree) == ("max_iter" in tree):
        raise ValueError(f"{prefix}min_iter, {prefix}max_iter: give one of them")
    if "min_iter" in tree:
        return EarlyTermination(_whole(tree, "min_iter", 1, prefix), eta)
    longest, halvings = _whole(tree, "max_iter", 1, prefix), _whole(tree, "s", 1, prefix)
    return EarlyTermination(max(1, longest // eta**halvings), eta)


def grid_cell(sweep: Sweep, number: int) -> dict[str, str]:
    """Return the cell of a grid with this number; the last parameter varies fastest."""
    varied = [
        parameter for parameter in sweep.parameters if parameter.distribution == "categorical"
    ]
    cell = next(itertools.islice(itertools.product(*(p.texts for p in varied)), number, None))
    return {parameter.name: text for parameter, text in zip(varied, cell, strict=True)}


def grid_size(sweep: Sweep) -> int:
    """Return the number of cells of a grid."""
    return math.prod(len(parameter.values) for parameter in sweep.parameters)
