"""Classification metrics: functions of log-probabilities and labels, in float64.

Shapes: N clips, K classes. Every mean is over clips, never over batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# DCASE's three groups of recording devices of TAU Urban Acoustic Scenes 2022 Mobile.
DEVICE_GROUPS: dict[str, tuple[str, ...]] = {
    "real": ("a", "b", "c"),
    "seen": ("s1", "s2", "s3"),
    "unseen": ("s4", "s5", "s6"),
}


def log_softmax(logits_NK: NDArray[np.floating]) -> Floats:
    """[N, K] logits → log-probabilities in float64."""
    x = np.asarray(logits_NK, np.float64)
    with np.errstate(invalid="ignore"):  # NaN stays NaN, and `summary` returns None
        x = x - x.max(1, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)), np.float64)


def log_loss(log_prob_NK: Floats, label_N: Ints) -> float:
    """Return the mean over clips of −ln p(true class)."""
    return float(-log_prob_NK[np.arange(len(label_N)), label_N].mean())


def confusion_matrix(log_prob_NK: Floats, label_N: Ints) -> Ints:
    """Return [K, K] counts: rows are true classes, columns predicted ones."""
    classes = log_prob_NK.shape[1]
    flat = label_N * classes + log_prob_NK.argmax(1)
    return np.bincount(flat, minlength=classes**2).reshape(classes, classes)


def macro_accuracy(confusion_KK: Ints) -> float:
    """Return the mean of the accuracies of those classes that have clips."""
    clips = confusion_KK.sum(1)
    present = clips > 0
    return float((np.diag(confusion_KK)[present] / clips[present]).mean())


def calibration(log_prob_NK: Floats, label_N: Ints, bins: int = 15) -> dict[str, object]:
    """Return the expected calibration error, and clips, confidence and accuracy of each bin.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Returns:
        `expected_calibration_error`; for each bin of confidence, `clips`, mean `confidence` and
        `accuracy`.
    """
    confidence = np.exp(log_prob_NK.max(1))
    correct = log_prob_NK.argmax(1) == label_N
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    clips = np.bincount(which, minlength=bins)
    filled = np.maximum(clips, 1)
    mean_confidence = np.bincount(which, confidence, bins) / filled
    accuracy = np.bincount(which, correct, bins) / filled
    error = float((clips / len(label_N) * np.abs(accuracy - mean_confidence)).sum())
    return {
        "expected_calibration_error": error,
        "clips": clips.tolist(),
        "confidence": mean_confidence.tolist(),
        "accuracy": accuracy.tolist(),
    }


def summary(log_prob_NK: Floats, label_N: Ints) -> dict[str, Any]:
    """Return macro_accuracy, accuracy, log_loss and clips of these predictions.

    All but the clips are None if a log-probability is not finite.
    """
    if not np.isfinite(log_prob_NK).all():
        none = dict.fromkeys(("macro_accuracy", "accuracy", "log_loss"))
        return {**none, "clips": len(label_N)}
    confusion = confusion_matrix(log_prob_NK, label_N)
    return {
        "macro_accuracy": macro_accuracy(confusion),
        "accuracy": float(np.trace(confusion) / len(label_N)),
        "log_loss": log_loss(log_prob_NK, label_N),
        "clips": len(label_N),
    }


def by_value(log_prob_NK: Floats, label_N: Ints, values_N: NDArray[np.str_]) -> dict[str, object]:
    """Return `summary` for the clips of each value of a column, such as the device."""
    return {
        str(value): summary(log_prob_NK[values_N == value], label_N[values_N == value])
        for value in np.unique(values_N)
    }


def full_report(
    log_prob_NK: Floats,
    label_N: Ints,
    classes: Sequence[str],
    columns: dict[str, NDArray[np.str_]],
) -> dict[str, Any]:
    """Return all metrics of `cpprune evaluate`, JSON-ready.

    Args:
        log_prob_NK: log-probabilities.
        label_N: true classes.
        classes: their names.
        columns: `device` and `city` of every clip, where known.
    """
    report = summary(log_prob_NK, label_N)
    confusion = confusion_matrix(log_prob_NK, label_N)
    per_class: dict[str, object] = {}
    for number, name in enumerate(classes):
        own = label_N == number
        if own.any():
            values = summary(log_prob_NK[own], label_N[own])
            per_class[name] = {k: values[k] for k in ("accuracy", "log_loss", "clips")}
    report["per_class"] = per_class
    report["per_device"], report["per_group"], report["per_city"] = {}, {}, {}
    if "device" in columns:
        device = columns["device"]
        report["per_device"] = by_value(log_prob_NK, label_N, device)
        if set(np.unique(device)) <= {d for group in DEVICE_GROUPS.values() for d in group}:
            for group, devices in DEVICE_GROUPS.items():
                own = np.isin(device, devices)
                if own.any():
                    report["per_group"][group] = summary(log_prob_NK[own], label_N[own])
    if "city" in columns:
        report["per_city"] = by_value(log_prob_NK, label_N, columns["city"])
    report["confusion"] = confusion.tolist()
    report["calibration"] = calibration(log_prob_NK, label_N)
    return report
