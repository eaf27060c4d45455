"""Predictions of a model over a split, or over audio files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cpprune.audio.frontend import FrontEnd
from cpprune.data.prefetch import Fetch
from cpprune.distributed.collectives import all_gather_rows
from cpprune.distributed.process_group import rank, world_size
from cpprune.evaluation import metrics
from cpprune.models.classifier import Classifier
from cpprune.models.example import memory_format
from cpprune.models.routed import RoutedModel
from shards.errors import UserError
from shards.order import rank_slice

if TYPE_CHECKING:
    from shards.split import Split

# Clips per forward pass: bounds memory and changes no result.
CHUNK = 256

DIVERGED = "its training diverged: train again, with a lower optim.lr or with train.clip_norm"


@torch.no_grad()
def predict_split(
    network: nn.Module,
    features: FrontEnd,
    split: Split,
    device: torch.device,
    fetch: Fetch | None = None,
) -> NDArray[np.float32]:
    """Return the logits [N, K] of every clip of a split, in its order, on every rank.

    Each rank predicts a slice, so that each clip is predicted once. The network's mode, training or
    evaluation, is restored.

    Args:
        network: x_BCFT → logits.
        features: the front end.
        split: of an open dataset.
        device: of network and front end.
        fetch: returns clips by their position in the split; by default they are read from the shards.
    """
    layout: torch.memory_format | None = None

    def classify(clips: Tensor) -> Tensor:
        nonlocal layout
        x = features(clips.to(device))
        if layout is None:
            layout = memory_format(network, x)
        logits: Tensor = network(x.to(memory_format=layout)).float()
        return logits

    was_training = network.training
    network.eval()
    logits = predict_clips(classify, split, fetch)
    network.train(was_training)
    return logits


def predict_clips(
    classify: Callable[[Tensor], Tensor], split: Split, fetch: Fetch | None = None
) -> NDArray[np.float32]:
    """Return the logits [N, K] of every clip of a split, in its order, on every rank.

    Args:
        classify: clips → logits.
        split: of an open dataset.
        fetch: returns clips by their position in the split; by default they are read from the shards.
    """
    if fetch is None:
        split.dataset.prefetch(split.ids)
    read = fetch or (lambda positions: torch.from_numpy(split.fetch(positions)))
    return predict_positions(classify, read, len(split))


def predict_positions(
    classify: Callable[[Tensor], Tensor], fetch: Fetch, number: int
) -> NDArray[np.float32]:
    """Return the logits [N, K] of N clips, in their order, on every rank.

    Args:
        classify: clips → logits.
        fetch: returns clips by their position.
        number: of clips, N.
    """
    own = rank_slice(np.arange(number), rank(), world_size())
    chunks = [own[begin : begin + CHUNK] for begin in range(0, len(own), CHUNK)]
    parts = [classify(fetch(positions)) for positions in chunks]
    if not parts:
        parts.append(classify(fetch(np.array([0])))[:0])
    return all_gather_rows(torch.cat(parts), number).cpu().numpy()


def predict_model(
    model: Classifier | RoutedModel, split: Split, device: torch.device
) -> NDArray[np.float32]:
    """Return the logits [N, K] of every clip of a split, in its order, on every rank.

    Args:
        model: a model folder's, an exported file's, or several that clips are routed to.
        split: of a dataset that fits the model.
        device: of this process, on which ranks exchange results.

    Raises:
        UserError: the dataset lacks the column by which clips are routed, if any are.
    """
    if isinstance(model, RoutedModel) and not model.models:
        model = model.general  # nothing is routed, by whatever column
    if not isinstance(model, RoutedModel):
        return predict_clips(lambda clips: model.logits(clips).to(device), split)
    logits = np.empty((len(split), len(model.classes)), np.float32)
    values = split.column(model.column)
    for one in (model.general, *model.models.values()):
        own = [value for value in set(values) if model.model_for(str(value)) is one]
        positions = np.flatnonzero(np.isin(values, own))
        if len(positions):
            logits[positions] = predict_model(one, split.take(positions), device)
    return logits


def evaluate_model(
    model: Classifier | RoutedModel, split: Split, device: torch.device
) -> tuple[dict[str, Any], metrics.Floats]:
    """Return the full report on a split, and the log-probabilities [N, K] that it was made from.

    Args:
        model: see `predict_model`.
        split: of a dataset that fits the model.
        device: of this process, on which ranks exchange results.

    Raises:
        UserError: the model's output is not finite; see also `predict_model`.
    """
    logits = predict_model(model, split, device)
    log_prob = metrics.log_softmax(logits)
    wrong = np.flatnonzero(~np.isfinite(log_prob).all(1))
    if len(wrong):
        raise UserError(
            f"the model's output is not finite for {len(wrong):,} of {len(split):,} clips, such as "
            f"{split.dataset.key(int(split.ids[wrong[0]]))}; {DIVERGED}"
        )
    columns = {name: split.column(name) for name in split.dataset.groups}
    return metrics.full_report(log_prob, split.labels, model.classes, columns), log_prob


def predict_file(model: Classifier, path: Path) -> tuple[NDArray[np.float64], int]:
    """Return the mean probabilities [K] over an audio file's clips, and the number of clips.

    The file is read and cut as the shard builder does it: any format, sample rate and number of
    channels; the remainder of a longer file is a clip if it fills half of one. Clips are weighted by
    how many of their samples are not padding.

    Raises:
        BadFile: it is not audio, or it is truncated.
        UserError: the model's output is not finite.
    """
    from shards.audio.clips import MIN_SOUND, count_clips, cut
    from shards.audio.load import load

    assert model.sample_rate is not None
    samples = load(path, model.sample_rate).samples
    length = model.clip_shape[0]
    number = count_clips(len(samples), length, "pad", MIN_SOUND)
    parts = []
    for begin in range(0, number, CHUNK):
        places = range(begin, min(begin + CHUNK, number))
        clips = np.stack([cut(samples, place, length) for place in places])
        parts.append(model.logits(torch.from_numpy(clips)))
    if not torch.cat(parts).isfinite().all():
        raise UserError(f"{path}: the model's output is not finite; {DIVERGED}")
    probabilities = np.exp(metrics.log_softmax(torch.cat(parts).numpy()))
    sound = np.minimum(length, len(samples) - length * np.arange(number))
    return np.average(probabilities, axis=0, weights=sound), number
