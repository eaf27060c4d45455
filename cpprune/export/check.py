"""An exported file against the model that it was made from: outputs, accuracy, latency."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.evaluation.predict import predict_clips
from cpprune.export.target import Exported
from cpprune.models.artifact import Model
from cpprune.models.classifier import Classifier
from shards.split import Split

WARM_UP_RUNS = 5
RUNS = 40
CONFIDENCE = 1.959964  # standard deviations on either side of 95 % of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """An accuracy, and the ends `low` and `high` of its 95 % interval."""

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Of a model folder, and of what was exported from it."""

    model: Accuracy
    exported: Accuracy


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Median milliseconds for one clip on one thread, front end included."""

    model: float
    exported: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """How an exported model differs from its model folder on clips of a split.

    Attributes:
        split: name of the split.
        clips: how many of its clips.
        largest_difference: of logits.
        agreement: fraction of clips to which both give the same class.
        accuracy: of both.
        latency_ms: of both.
    """

    split: str
    clips: int
    largest_difference: float
    agreement: float
    accuracy: Accuracies
    latency_ms: Latencies


def compare(model: Model, exported: Exported, split: Split) -> Check:
    """Return how an exported model differs from its model folder on a split.

    Args:
        model: that it was made from, on the CPU.
        exported: what was made from it, on one thread.
        split: of a dataset that fits the model.
    """
    expected, found = (predict_clips(one.logits, split) for one in (model, exported))
    classes, exported_classes = expected.argmax(1), found.argmax(1)
    return Check(
        split=split.name,
        clips=len(split),
        largest_difference=float(np.abs(found - expected).max()),
        agreement=float((exported_classes == classes).mean()),
        accuracy=Accuracies(
            model=accuracy(classes, split.labels), exported=accuracy(exported_classes, split.labels)
        ),
        latency_ms=latencies(model, exported),
    )


def accuracy(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> Accuracy:
    """Return the accuracy of predictions and the ends of its 95 % interval."""
    right = int((predicted == labels).sum())
    low, high = wilson(right, len(labels))
    return Accuracy(accuracy=right / len(labels), low=low, high=high)


def wilson(right: int, trials: int) -> tuple[float, float]:
    """Return the ends of the 95 % score interval of a proportion.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of
    the American Statistical Association 22, 1927.
    """
    z = CONFIDENCE
    rate, scale = right / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def latencies(model: Model, exported: Exported) -> Latencies:
    """Return the median milliseconds of both for one clip on one thread, taking turns."""
    with one_thread():
        of_model, of_exported = _alternating([_run_once(model), _run_once(exported)])
    return Latencies(model=of_model, exported=of_exported)


def median_ms(model: Classifier) -> float:
    """Return the median milliseconds of a model for one clip, front end included."""
    with one_thread():
        return _alternating([_run_once(model)])[0]


@contextmanager
def one_thread() -> Iterator[None]:
    """Context in which torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def noise(model: Classifier, clips: int) -> Tensor:
    """Return clips of noise as shards store them, the same ones whenever."""
    generator = torch.Generator().manual_seed(0)
    low, high, dtype = (-3000, 3000, torch.int16) if model.sample_rate else (0, 256, torch.uint8)
    return torch.randint(low, high, (clips, *model.clip_shape), generator=generator, dtype=dtype)


def _run_once(model: Classifier) -> Callable[[], object]:
    clip = noise(model, 1)
    return lambda: model.logits(clip)


def _alternating(calls: list[Callable[[], object]]) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    for run in range(WARM_UP_RUNS + RUNS):
        for call, found in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if run >= WARM_UP_RUNS:
                found.append(1000 * (time.perf_counter() - begin))
    return [median(found) for found in times]
