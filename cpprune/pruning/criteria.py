"""Pruning criteria: how important a channel is. Importable without torch.

A criterion is one decorated function in this file; configuration, help and tests find it in `CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from cpprune.deps.torch_pruning import CoupledGroup

# Maps a coupled group to the scores of its channels; None: it has nothing to score.
Importance: TypeAlias = "Callable[[CoupledGroup], Tensor | None]"
Needs = Literal["weights", "gradients", "squared_gradients"]
Function: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Criterion:
    """How the channels of a group are scored.

    Attributes:
        name: its word in the configuration.
        source: the paper.
        needs: what it looks at: the weights alone, or also the mean over a slice of the training clips
            of the loss's gradients, or of their squares.
        options: which of `reduction` and `normaliser` can be set.
        function: for "weights": seed → Torch-Pruning importance, which maps a coupled group to scores
            (None: nothing to score); else: (weights, mean) → the saliency of each weight, which then
            takes the weight's place in `magnitude`.
    """

    name: str
    source: str
    needs: Needs
    options: tuple[str, ...]
    function: Function

    @property
    def needs_data(self) -> bool:
        """Whether scores depend on training clips."""
        return self.needs != "weights"

    def importance(self, seed: int) -> Any:
        """Return what maps a coupled group to scores; `seed` is that of the criterion random."""
        return magnitude(seed) if self.needs_data else self.function(seed)


CRITERIA: dict[str, Criterion] = {}


def criterion(
    *,
    source: str,
    needs: Needs = "weights",
    options: tuple[str, ...] = ("reduction", "normaliser"),
) -> Callable[[Function], Function]:
    """Register a function under its name as a criterion; see `Criterion`."""

    def register(function: Function) -> Function:
        name = function.__name__
        CRITERIA[name] = Criterion(name, source, needs, options, function)
        return function

    return register


@criterion(source="Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017")
def magnitude(seed: int) -> Importance:
    """Mean L1 norm over the tensors of the group."""
    return _norm(1, "mean", "mean")


@criterion(source="Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017")
def magnitude_l2(seed: int) -> Importance:
    """Mean squared L2 norm over the tensors of the group."""
    return _norm(2, "mean", "mean")


@criterion(source="Liu et al., Network Slimming, ICCV 2017")
def bn_scale(seed: int) -> Importance:
    """Scaling factors of batch normalisation."""
    return _imported("BNScale")


@criterion(source="Fang et al., DepGraph, CVPR 2023")
def group_norm(seed: int) -> Importance:
    """Squared L2 norm over the whole group."""
    return _norm(2, "sum", "max")


@criterion(source="Lee et al., LAMP, ICLR 2021", options=("reduction",))
def lamp(seed: int) -> Importance:
    """Layer-adaptive magnitude, which is a normaliser itself."""
    return _imported("LAMP")


@criterion(source="He et al., FPGM, CVPR 2019")
def fpgm(seed: int) -> Importance:
    """Distance from the geometric median of the filters."""
    from cpprune.deps.torch_pruning import fpgm_importance

    found: Importance = fpgm_importance()
    return found


@criterion(
    source="Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019",
    needs="gradients",
)
def taylor(weights: Tensor, gradient: Tensor) -> Tensor:
    """First-order effect on the loss: |w · ∂L/∂w|."""
    return (weights * gradient).abs()


@criterion(
    source="LeCun et al., Optimal Brain Damage, NeurIPS 1989; Theis et al., 2018",
    needs="squared_gradients",
)
def hessian(weights: Tensor, squared_gradient: Tensor) -> Tensor:
    """Second-order effect on the loss: ½ · w² · E[(∂l/∂w)²], with the empirical Fisher information."""
    return 0.5 * weights.square() * squared_gradient


@criterion(source="control for the other criteria", options=())
def random(seed: int) -> Importance:
    """Pseudo-random numbers, the same on every machine for a group of this name and width."""
    import numpy as np
    import torch

    from shards.random_stream import RandomStream

    def scores(group: CoupledGroup) -> Tensor:
        layer, width = group[0].dep.target.name, len(group[0].idxs)
        words = RandomStream(seed, width, *layer.encode()).words(width)
        return torch.from_numpy(words.astype(np.float64))

    return scores


def _norm(p: int, reduction: str, normaliser: str) -> Importance:
    return _imported("Magnitude", p=p, group_reduction=reduction, normalizer=normaliser)


def _imported(name: str, **arguments: object) -> Importance:
    """Return one of Torch-Pruning's importances."""
    import torch_pruning

    found: Importance = getattr(torch_pruning.importance, f"{name}Importance")(**arguments)
    return found


def check_fallback(criterion: str, fallback: str | None, scope: str) -> None:
    """Raise ValueError unless a second criterion can score the layers that the first cannot.

    Args:
        criterion: see `CRITERIA`.
        fallback: the second one, or None.
        scope: how cuts are spread.
    """
    if fallback is None:
        return
    if scope not in ("local", "isomorphic"):
        raise ValueError(
            f"prune.fallback_criterion={fallback}: scores of two criteria cannot be ranked together, as "
            f"prune.scope={scope} would; set prune.scope to local or isomorphic"
        )
    for name in (criterion, fallback):
        if CRITERIA[name].needs_data:
            raise ValueError(
                f"prune.fallback_criterion={fallback} with prune.criterion={criterion}: {name} scores "
                "every layer, and by the loss; both have to be criteria of the weights alone"
            )


def check_options(criterion: str, reduction: str | None, normaliser: str | None) -> None:
    """Raise ValueError unless the criterion takes these options; None is the criterion's own choice.

    Args:
        criterion: see `CRITERIA`.
        reduction: how the scores of a channel in the layers of its group are combined.
        normaliser: statistic that a group's scores are divided by.
    """
    for name, value in (("reduction", reduction), ("normaliser", normaliser)):
        if value is not None and name not in CRITERIA[criterion].options:
            raise ValueError(f"prune.criterion={criterion} has no prune.{name}: leave it out")
