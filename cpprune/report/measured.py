"""What a run's model does on its data, where that can be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cpprune.data.compatibility import open_for_model
from cpprune.distributed.device import default_device
from cpprune.evaluation.metrics import Floats
from cpprune.evaluation.predict import evaluate_model
from cpprune.models.artifact import Model
from cpprune.report.media import png, wav
from cpprune.report.runs import Run
from shards.errors import InputError
from shards.reader import Dataset, Split


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A clip that the model took for another class.

    Attributes:
        key: of the clip.
        true: its class.
        predicted: what the model said instead.
        confidence: with which probability.
        picture: the network's input, as a data URI.
        shape: of it: rows, columns.
        sound: the clip, as a data URI; None for images.
    """

    key: str
    true: str
    predicted: str
    confidence: float
    picture: str
    shape: tuple[int, int]
    sound: str | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model on a split.

    Attributes:
        split: its name.
        dataset: it is of.
        figures: what `cpprune evaluate --json` tells.
        mistakes: the most confident ones first.
    """

    split: str
    dataset: Dataset
    figures: dict[str, Any]
    mistakes: list[Mistake]


def measure(run: Run, path: str | None, split: str, mistakes: int) -> Measured | str:
    """Evaluate a run's model; return why not, in one sentence, where there is no model or no data.

    Args:
        run: of a finished or interrupted training.
        path: of the dataset; that of the run's configuration if None.
        split: train, val or test.
        mistakes: how many to show.
    """
    if run.model is None:
        return "Without a model there is nothing to measure."
    place = path or str(run.settings.get("data.path"))
    cache = run.settings.get("data.cache"), run.settings.get("data.cache_bytes") or 0
    try:
        dataset = open_for_model(place, run.model, *cache)
        part = dataset.split(split)
    except InputError as error:
        return f"The data cannot be reached, so nothing is measured: {error}."
    try:
        device = default_device()
        figures, log_prob = evaluate_model(run.model.to(device), part, device)
        shown = find_mistakes(run.model.cpu(), part, log_prob, mistakes)
    except InputError as error:
        return f"Nothing could be measured: {error}."
    return Measured(split=split, dataset=dataset, figures=figures, mistakes=shown)


def find_mistakes(model: Model, split: Split, log_prob_NK: Floats, most: int) -> list[Mistake]:
    """Return the clips whose wrong class the model is surest of, the surest first.

    Args:
        model: on the host.
        split: that was predicted.
        log_prob_NK: log-probabilities of its clips.
        most: how many.
    """
    predicted = log_prob_NK.argmax(1)
    wrong = np.flatnonzero(predicted != split.labels)
    wrong = wrong[np.argsort(-log_prob_NK[wrong].max(1), kind="stable")][:most]
    clips = split.fetch(wrong)
    with torch.no_grad():
        inputs = model.features(torch.from_numpy(clips)).numpy()
    rate = model.sample_rate
    found = []
    for place, position in enumerate(wrong.tolist()):
        image = inputs[place, 0]
        upright = image[::-1] if model.features.spec is not None else image
        found.append(
            Mistake(
                key=split.dataset.key(int(split.ids[position])),
                true=model.classes[split.labels[position]],
                predicted=model.classes[predicted[position]],
                confidence=float(np.exp(log_prob_NK[position].max())),
                picture=png(upright),
                shape=(image.shape[0], image.shape[1]),
                sound=wav(clips[place], rate) if rate is not None else None,
            )
        )
    return found


def same_data(run: Run, measured: Measured) -> bool:
    """Return whether the dataset is the one that the run was trained on."""
    return bool(run.about.get("dataset") == measured.dataset.fingerprint)
