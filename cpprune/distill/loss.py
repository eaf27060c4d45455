"""The loss of a clip: cross-entropy with its labels, and distance from its teachers' distribution.

λ · CE + (1 − λ) · T² · KL(teacher ‖ student), both distributions softened by the temperature T
(Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2).

Shapes: b clips of this rank, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from cpprune.distill.config import DistillConfig

# Inputs of a step, beside the labels.
TEACHER, PARTNER_TEACHER = "teacher_logits", "partner_teacher_logits"
SEEN = "seen_logits"  # of the clips as the network sees them


@dataclass(frozen=True)
class Targets:
    """What this rank's clips are trained towards: (target, weight [b] or None for 1), two under mixup.

    Attributes:
        labels: class indices [b].
        teachers: teachers' averaged logits [b, K]; none without teachers.
    """

    labels: list[tuple[Tensor, Tensor | None]]
    teachers: list[tuple[Tensor, Tensor | None]]

    def losses(self, logits_bK: Tensor, rows: slice, config: DistillConfig) -> Tensor:
        """Return the loss of each of these rows of the clips, given the network's logits for them."""
        losses = _mixed(
            self.labels,
            rows,
            lambda label: functional.cross_entropy(logits_bK, label, reduction="none"),
        )
        if not self.teachers:
            return losses
        lam, temperature = config.label_weight, config.temperature
        distances = _mixed(
            self.teachers, rows, lambda teacher: divergence(logits_bK, teacher, temperature)
        )
        return lam * losses + (1 - lam) * temperature**2 * distances


def _mixed(
    parts: list[tuple[Tensor, Tensor | None]], rows: slice, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the weighted sum of the losses of one or two targets, in as few kernels as can be."""
    own = [
        loss(target[rows]) if weight is None else weight[rows] * loss(target[rows])
        for target, weight in parts
    ]
    return own[0] if len(own) == 1 else own[0] + own[1]


def divergence(logits_bK: Tensor, teacher_bK: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher ‖ student) of softened distributions, [b], in nats."""
    student = functional.log_softmax(logits_bK / temperature, dim=1)
    teacher = functional.log_softmax(teacher_bK / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def targets(inputs: Mapping[str, Tensor], seen_bK: Tensor | None) -> Targets:
    """Return the targets of a step.

    Under mixup, losses are mixed as the clips are. So are the divergences from teachers that have seen
    the unmixed clips, which gives the gradient of mixing the teachers' probabilities.

    Args:
        inputs: of the step.
        seen_bK: logits of teachers that have seen the clips as the network does, or None.
    """
    own = inputs["labels"]
    lam = inputs.get("mixup")
    labels: list[tuple[Tensor, Tensor | None]] = [(own, None)]
    teachers: list[tuple[Tensor, Tensor | None]] = []
    if lam is not None:
        labels = [(own, lam), (inputs["partner_labels"], 1 - lam)]
    if seen_bK is not None:
        teachers = [(seen_bK, None)]
    elif TEACHER in inputs:
        teachers = [(inputs[TEACHER], None)]
        if lam is not None:
            teachers = [(inputs[TEACHER], lam), (inputs[PARTNER_TEACHER], 1 - lam)]
    return Targets(labels, teachers)
