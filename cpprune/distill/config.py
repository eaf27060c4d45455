"""Settings of knowledge distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cpprune.settings.choices import check_choices

Average = Literal["logits", "probabilities"]

# The name of the run's own network as it was before its first pruning step, as a teacher.
UNCUT = "uncut"
LOGITS_SUFFIX = ".npz"
EXPORTED_SUFFIXES = (".onnx", ".pte", ".tflite")  # of files of cpprune export


@dataclass(kw_only=True)
class DistillConfig:
    """Knowledge distillation: teachers that the network learns from, beside the labels."""

    teachers: list[str] = field(default_factory=list)
    """model folders, files of cpprune export, .npz files of logits (cpprune logits), or uncut: the
    network itself as it was before its first pruning step"""
    weights: list[float] | None = None
    """weight of each teacher in their average (default: equal weights)"""
    average: Average = "logits"
    """what is averaged over several teachers: logits or probabilities"""
    temperature: float = 2.0
    """temperature T that teacher and student distributions are softened by"""
    label_weight: float = 0.02
    """weight λ of the labels, from 0 to 1: the loss of a clip is λ · cross-entropy + (1 − λ) · T² ·
    KL(teacher ‖ student)"""
    mode: Literal["clean", "on_the_fly"] = "clean"
    """which clips the teachers see: clean (without augmentation, once, before training) or on_the_fly
    (the augmented clips, in every step)"""
    cache: str | None = None
    """on_the_fly: folder where the teachers' logits are kept, for this and other runs with the same
    seed, clips, batches, augmentation and teachers (default: none)"""

    def __post_init__(self) -> None:
        check_choices(self, "distill")
        if self.weights is not None:
            if len(self.weights) != len(self.teachers):
                raise ValueError(
                    f"distill.weights={self.weights}: must be one number for each of the "
                    f"{len(self.teachers)} teachers in distill.teachers"
                )
            if not all(weight > 0 and math.isfinite(weight) for weight in self.weights):
                raise ValueError(f"distill.weights={self.weights}: every weight must be above 0")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"distill.temperature={self.temperature}: must be above 0")
        if not 0 <= self.label_weight <= 1:
            raise ValueError(f"distill.label_weight={self.label_weight}: must be from 0 to 1")
        if self.teachers.count(UNCUT) > 1:
            raise ValueError(f"distill.teachers={self.teachers}: {UNCUT} may be named once")
        stored = [
            name for name in self.teachers if name.endswith((LOGITS_SUFFIX, *EXPORTED_SUFFIXES))
        ]
        if self.mode == "on_the_fly" and stored:
            raise ValueError(
                f"distill.mode=on_the_fly: {stored[0]} cannot be run on augmented clips; give model "
                "folders, or set distill.mode=clean"
            )

        if self.cache is not None and (self.mode != "on_the_fly" or not self.teachers):
            raise ValueError(
                f"distill.cache={self.cache}: keeps logits of augmented clips; set distill.teachers "
                "and distill.mode=on_the_fly, or leave it out"
            )
        if self.cache is not None and UNCUT in self.teachers:
            raise ValueError(
                f"distill.cache={self.cache}: cannot keep the logits of {UNCUT}, which is another "
                "network in every run; leave one of them out"
            )

    def weight(self, number: int) -> float:
        """Return the weight of a teacher, by its place in `teachers`."""
        return 1.0 if self.weights is None else self.weights[number]
