"""Models that are asked for their opinion: teachers, and members of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cpprune.distill.average import average
from cpprune.distill.config import Average
from cpprune.export.classifier import load_classifier
from cpprune.export.target import ExportedFile
from cpprune.models.artifact import Model
from cpprune.models.example import memory_format
from cpprune.models.routed import GENERAL, RoutedModel
from shards.errors import UserError
from shards.reader import Dataset


@dataclass
class Teacher:
    """A model whose logits are in the order of a dataset's classes.

    Attributes:
        name: its path, for messages.
        model: in evaluation mode.
        order: the place, among its classes, of each of the dataset's.
    """

    name: str
    model: Model | ExportedFile
    order: list[int]
    _layout: torch.memory_format | None = field(default=None, init=False)

    def logits(self, clips: Tensor) -> Tensor:
        """Return the logits [B, K] of clips as shards hold them."""
        return self._ordered(self.model.logits(clips))

    @torch.no_grad()
    def logits_of_inputs(self, x_bCFN: Tensor) -> Tensor:
        """Return the logits [b, K] of what its front end returns; only of a model folder's."""
        assert isinstance(self.model, Model)
        if not len(x_bCFN):  # a rank may hold no clip of the last batch
            return torch.zeros((0, len(self.order)), device=x_bCFN.device)
        if self._layout is None:
            self._layout = memory_format(self.model.network, x_bCFN)
        found: Tensor = self.model.network(x_bCFN.contiguous(memory_format=self._layout))
        return self._ordered(found.float())

    def _ordered(self, logits: Tensor) -> Tensor:
        if self.order == sorted(self.order):
            return logits
        return torch.stack([logits[:, place] for place in self.order], dim=1)


def load_teacher(path: str, dataset: Dataset, device: torch.device, what: str = "") -> Teacher:
    """Load a model folder or exported file that fits a dataset.

    Args:
        path: of the folder or file.
        dataset: whose clips it is to see, and whose classes it has to know.
        device: where a model folder's network goes.
        what: the setting that names it, for messages.

    Raises:
        UserError: it cannot be loaded, or has other classes, another sample rate or clip length.
    """
    model = load_classifier(Path(path), device)
    prefix = f"{what}: {path}" if what else path
    if isinstance(model, RoutedModel):
        raise UserError(f"{prefix}: holds a model for each {model.column}; name {path}/{GENERAL}")
    wanted = (dataset.sample_rate, tuple(dataset.shape))
    if (made := (model.sample_rate, tuple(model.clip_shape))) != wanted:
        raise UserError(
            f"{prefix}: takes clips of shape {list(made[1])} at {made[0]} Hz, but {dataset.path} holds "
            f"clips of shape {list(wanted[1])} at {wanted[0]} Hz; give models of this kind of clip"
        )
    return Teacher(path, model, class_order(model.classes, dataset.classes, prefix))


def class_order(given: Sequence[str], wanted: Sequence[str], prefix: str) -> list[int]:
    """Return the place in `given` of each class in `wanted`.

    Raises:
        UserError: they are not the same classes.
    """
    if sorted(given) != sorted(wanted):
        odd = sorted(set(given) ^ set(wanted)) or ["a class twice"]
        more = " …" if len(odd) > 5 else ""
        raise UserError(
            f"{prefix}: has other classes than the dataset (differing: {', '.join(odd[:5])}{more}); "
            "give models of the same classes"
        )
    return [list(given).index(name) for name in wanted]


class Ensemble:
    """Several models as one, whose output is the average of theirs; a `Classifier`.

    Args:
        paths: of the models; see `load_teacher`.
        weights: of each.
        of: what is averaged.
        dataset: that they have to fit.
        device: of the networks of model folders.
    """

    def __init__(
        self,
        paths: Sequence[str],
        weights: Sequence[float],
        of: Average,
        dataset: Dataset,
        device: torch.device,
    ) -> None:
        self.members = [load_teacher(path, dataset, device) for path in paths]
        self.weights, self.of = weights, of
        self.classes = tuple(dataset.classes)
        self.clip_shape = tuple(dataset.shape)
        self.sample_rate = dataset.sample_rate

    def logits(self, clips: Tensor) -> Tensor:
        """Return the logits [B, K] of clips as shards hold them, on the CPU."""
        parts = [member.logits(clips).cpu() for member in self.members]
        return average(parts, self.weights, self.of)
