"""The loss of a student, and its gradient, against float64 sums written out."""

import numpy as np
import pytest
import torch

from cpprune.distill.average import average
from cpprune.distill.config import DistillConfig
from cpprune.distill.loss import PARTNER_TEACHER, TEACHER, targets

CLIPS, CLASSES = 7, 5
GENERATOR = np.random.default_rng(3)
STUDENT, OWN, PARTNER = GENERATOR.normal(0, 3, (3, CLIPS, CLASSES))
LABELS, PARTNER_LABELS = GENERATOR.integers(CLASSES, size=(2, CLIPS))
LAM = GENERATOR.uniform(size=CLIPS)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def expected(config, teachers, labels):
    """Return the losses and the gradient of their sum; terms are (target, weight)."""
    t, lam, one_hot = config.temperature, config.label_weight, np.eye(CLASSES)
    soft, hard = softmax(STUDENT / t), softmax(STUDENT)
    losses, gradient = np.zeros(CLIPS), np.zeros((CLIPS, CLASSES))
    for label, weight in labels:
        losses -= lam * weight * np.log(hard[np.arange(CLIPS), label])
        gradient += lam * weight[:, None] * (hard - one_hot[label])
    for teacher, weight in teachers:
        p = softmax(teacher / t)
        losses += (1 - lam) * t**2 * weight * (p * np.log(p / soft)).sum(1)
        gradient += (1 - lam) * t * weight[:, None] * (soft - p)
    return losses, gradient


def found(config, inputs, seen=None):
    student = torch.tensor(STUDENT, requires_grad=True)
    wanted = targets({name: torch.tensor(value) for name, value in inputs.items()}, seen)
    parts = [wanted.losses(student[rows], rows, config) for rows in (slice(0, 3), slice(3, CLIPS))]
    losses = torch.cat(parts)
    losses.sum().backward()
    return losses.detach().numpy(), student.grad.numpy()


CONFIGS = [DistillConfig(), DistillConfig(temperature=1.0, label_weight=0.5)]


@pytest.mark.parametrize("config", CONFIGS, ids=["T 2", "T 1"])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_from_stored_logits(config, mixed):
    ones = np.ones(CLIPS)
    inputs = {"labels": LABELS, TEACHER: OWN}
    terms = [(OWN, ones)], [(LABELS, ones)]
    if mixed:
        inputs |= {"mixup": LAM, "partner_labels": PARTNER_LABELS, PARTNER_TEACHER: PARTNER}
        terms = (
            [(OWN, LAM), (PARTNER, 1 - LAM)],
            [(LABELS, LAM), (PARTNER_LABELS, 1 - LAM)],
        )
    for one, other in zip(found(config, inputs), expected(config, *terms), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_teachers_that_have_seen_mixed_clips_are_not_mixed_again():
    config = DistillConfig(label_weight=0.3)
    inputs = {"labels": LABELS, "mixup": LAM, "partner_labels": PARTNER_LABELS}
    labels = [(LABELS, LAM), (PARTNER_LABELS, 1 - LAM)]
    wanted = expected(config, [(OWN, np.ones(CLIPS))], labels)
    for one, other in zip(found(config, inputs, torch.tensor(OWN)), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_mixing_the_divergences_has_the_gradient_of_mixing_the_probabilities():
    config = DistillConfig(label_weight=0.0)
    inputs = {"labels": LABELS, TEACHER: OWN, "mixup": LAM, "partner_labels": PARTNER_LABELS}
    _, gradient = found(config, {**inputs, PARTNER_TEACHER: PARTNER})
    p = LAM[:, None] * softmax(OWN / 2) + (1 - LAM)[:, None] * softmax(PARTNER / 2)
    np.testing.assert_allclose(gradient, 2 * (softmax(STUDENT / 2) - p), atol=1e-12)


def test_without_teachers_the_loss_is_the_cross_entropy():
    losses, _ = found(DistillConfig(), {"labels": LABELS})
    hard = -np.log(softmax(STUDENT)[np.arange(CLIPS), LABELS])
    np.testing.assert_allclose(losses, hard, rtol=1e-9)


def test_averages():
    both = [torch.tensor(OWN), torch.tensor(PARTNER)]
    mean = average(both, [3, 1], "logits")
    np.testing.assert_allclose(mean, 0.75 * OWN + 0.25 * PARTNER)
    mean = average(both, [3, 1], "probabilities")
    wanted = 0.75 * softmax(OWN) + 0.25 * softmax(PARTNER)
    np.testing.assert_allclose(mean, np.log(wanted), rtol=1e-9, atol=1e-12)
