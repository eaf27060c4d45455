"""Evaluation of a run's model on its dataset, if that can be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cpprune.data.compatibility import open_for_model
from cpprune.distributed.device import default_device
from cpprune.evaluation.metrics import Floats
from cpprune.evaluation.predict import evaluate_model
from cpprune.models.artifact import Model
from cpprune.report.data_uri import png, wav
from cpprune.report.run_folder import Run
from shards.errors import UserError
from shards.reader import Dataset
from shards.split import Split


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A misclassified clip.

    Attributes:
        key: of the clip.
        true: its class.
        predicted: the class that the model predicts.
        confidence: probability of the predicted class.
        picture: the network's input, as a data URI.
        shape: rows and columns of the picture.
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
class Evaluation:
    """Results of a model on a split.

    Attributes:
        split: name of the split.
        dataset: that it belongs to.
        metrics: as printed by `cpprune evaluate --json`.
        mistakes: most confident first.
        predicted: class index of each clip of the split.
    """

    split: str
    dataset: Dataset
    metrics: dict[str, Any]
    mistakes: list[Mistake]
    predicted: NDArray[np.int64]


def evaluate_run(run: Run, path: str | None, split: str, mistakes: int) -> Evaluation | str:
    """Evaluate a run's model; if there is no model or no data, return a sentence that says so.

    Args:
        run: finished or interrupted.
        path: of the dataset; None: that of the run's configuration.
        split: train, val or test.
        mistakes: number of misclassified clips to include.
    """
    if run.model is None:
        return "There is no model to evaluate."
    place = path or str(run.known.get("data.path"))
    cache = run.known.get("data.cache"), run.known.get("data.cache_bytes", 0)
    try:
        dataset = open_for_model(place, run.model, *cache)
        part = dataset.split(split)
    except UserError as error:
        return f"The model was not evaluated, since the data cannot be reached: {error}."
    try:
        device = default_device()
        metrics, log_prob = evaluate_model(run.model.to(device), part, device)
        shown = find_mistakes(run.model.cpu(), part, log_prob, mistakes)
    except UserError as error:
        return f"The model could not be evaluated: {error}."
    return Evaluation(
        split=split,
        dataset=dataset,
        metrics=metrics,
        mistakes=shown,
        predicted=log_prob.argmax(1),
    )


def find_mistakes(model: Model, split: Split, log_prob_NK: Floats, most: int) -> list[Mistake]:
    """Return the misclassified clips with the highest confidence, in falling order.

    Args:
        model: on the CPU.
        split: of N clips.
        log_prob_NK: their log-probabilities.
        most: maximum number to return.
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


def is_training_data(run: Run, evaluation: Evaluation) -> bool:
    """Return whether the run was trained on the evaluated dataset."""
    return run.about is not None and run.about.dataset == evaluation.dataset.fingerprint
