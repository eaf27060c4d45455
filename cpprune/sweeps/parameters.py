"""A parameter of a sweep: its distribution, and how Optuna samples it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

# distribution → (keys it needs, keys it may have)
DISTRIBUTIONS: dict[str, tuple[set[str], set[str]]] = {
    "constant": ({"value"}, set()),
    "categorical": ({"values"}, set()),
    "int_uniform": ({"min", "max"}, set()),
    "uniform": ({"min", "max"}, set()),
    "q_uniform": ({"min", "max"}, {"q"}),
    "log_uniform": ({"min", "max"}, set()),
    "log_uniform_values": ({"min", "max"}, set()),
    "q_log_uniform_values": ({"min", "max"}, {"q"}),
}
LOGARITHMIC = ("log_uniform", "log_uniform_values", "q_log_uniform_values")

MAX_GRID_VALUES = 100_000  # of one parameter


@dataclass(frozen=True)
class Parameter:
    """A parameter of a sweep.

    Attributes:
        path: names from the outermost `parameters` on; most have one, such as `prune.ratio`.
        distribution: one of `DISTRIBUTIONS`.
        values: all values of `constant` and `categorical`.
        low: smallest value of the other distributions.
        high: largest value.
        q: step: values are multiples of it; 0: no step.
    """

    path: tuple[str, ...]
    distribution: str
    values: tuple[object, ...] = ()
    low: float = 0
    high: float = 0
    q: float = 0

    @property
    def name(self) -> str:
        """The dotted name."""
        return ".".join(self.path)

    @property
    def texts(self) -> list[str]:
        """The values as JSON: Optuna's categories cannot be lists."""
        return [json.dumps(value) for value in self.values]

    def listed(self) -> Parameter:
        """Return the parameter with its values listed, as wandb lists them for a grid.

        Raises:
            ValueError: there are too many, or infinitely many.
        """
        if self.values:
            return self
        if self.distribution in ("int_uniform", "q_uniform"):
            step = self.q if self.distribution == "q_uniform" else 1
            if not step or (self.high - self.low) / step > MAX_GRID_VALUES:
                raise ValueError(
                    f"parameters.{self.name}: method=grid tries at most {MAX_GRID_VALUES:,} values"
                )
        if self.distribution == "int_uniform":
            values: list[float] = list(range(int(self.low), int(self.high) + 1))
        elif self.distribution == "q_uniform":
            values = [_tidy(value) for value in np.arange(self.low, self.high, self.q).tolist()]
        else:
            raise ValueError(
                f"parameters.{self.name}: {self.distribution} has infinitely many values, and "
                "method=grid tries all; give `values`, or choose method random or bayes"
            )
        return replace(self, distribution="categorical", values=tuple(values))

    def suggest(self, trial: BaseTrial) -> object:
        """Return the value in a trial of Optuna; always the same in one trial."""
        if self.distribution == "constant":
            return self.values[0]
        if self.distribution == "categorical":
            return json.loads(trial.suggest_categorical(self.name, self.texts))
        if self.distribution == "int_uniform":
            return trial.suggest_int(self.name, int(self.low), int(self.high))
        log = self.distribution in LOGARITHMIC
        value = trial.suggest_float(self.name, self.low, self.high, log=log)
        if not self.q:
            return value
        value = _tidy(round(value / self.q) * self.q)
        return int(value) if isinstance(self.q, int) else value


def _tidy(value: float) -> float:
    """Return the number without the rounding error in its last digits."""
    return value if isinstance(value, int) else float(f"{value:.12g}")


def read_parameter(path: tuple[str, ...], tree: object) -> Parameter:
    """Read a parameter.

    Args:
        path: see `Parameter`.
        tree: value of the parameter's key in the file.

    Raises:
        ValueError: it is wrong or not supported; the message names it.
    """
    where = ".".join(("parameters", *path))
    if not isinstance(tree, dict):
        raise ValueError(f"{where}={tree}: must be like {{value: {tree}}}")
    distribution = str(tree.get("distribution") or _inferred(where, tree))
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"{where}.distribution={distribution}: is not supported; choose one of "
            f"{', '.join(DISTRIBUTIONS)}"
        )
    needed, allowed = DISTRIBUTIONS[distribution]
    for key in sorted(needed - tree.keys()):
        raise ValueError(f"{where}.{key}: is missing; {distribution} needs it")
    for key in sorted(tree.keys() - needed - allowed - {"distribution"}):
        raise ValueError(f"{where}.{key}: is not supported with {distribution}")
    if distribution == "constant":
        return Parameter(path, distribution, (tree["value"],))
    if distribution == "categorical":
        return _categorical(path, tree["values"])
    return _numeric(path, distribution, tree)


def _inferred(where: str, tree: dict[str, object]) -> str:
    if "value" in tree:
        return "constant"
    if "values" in tree:
        return "categorical"
    bounds = {type(tree.get(key)) for key in ("min", "max")}
    if bounds == {int}:
        return "int_uniform"
    if bounds == {float}:
        return "uniform"
    raise ValueError(
        f"{where}: must have `value`, `values`, or `min` and `max`, both integers or both floats "
        "(YAML reads 1e-4 as text: write 1.0e-4), or a `distribution`"
    )


def _categorical(path: tuple[str, ...], values: object) -> Parameter:
    where = ".".join(("parameters", *path, "values"))
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}={values}: must be a list")
    parameter = Parameter(path, "categorical", tuple(values))
    twice = [text for text in parameter.texts if parameter.texts.count(text) > 1]
    if twice:
        raise ValueError(f"{where}: {twice[0]} is given twice")
    return parameter


def _numeric(path: tuple[str, ...], distribution: str, tree: dict[str, object]) -> Parameter:
    where = ".".join(("parameters", *path))
    quantised = distribution.startswith("q_")
    bounds: dict[str, float] = {"q": 0}
    for key in ("min", "max", "q") if quantised else ("min", "max"):
        value, whole = tree.get(key, 1), distribution == "int_uniform"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            what = "a whole number" if whole else "a number (YAML reads 1e-4 as text)"
            raise ValueError(f"{where}.{key}={value}: must be {what}")
        bounds[key] = value
    low, high = bounds["min"], bounds["max"]
    if not low < high:
        raise ValueError(f"{where}: min={low} must be below max={high}")
    if quantised and bounds["q"] <= 0:
        raise ValueError(f"{where}.q={bounds['q']}: must be above 0")
    if distribution == "log_uniform":  # whose bounds are exponents
        low, high = math.exp(low), math.exp(high)
    if distribution in LOGARITHMIC and low <= 0:
        raise ValueError(f"{where}.min={low}: must be above 0 with {distribution}")
    return Parameter(path, distribution, low=low, high=high, q=bounds["q"])
