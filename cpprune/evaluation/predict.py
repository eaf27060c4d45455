"""Predictions of a model over a split, or over audio files."""

from __future__ import annotations

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
from shards.errors import UserError
from shards.order import rank_slice

if TYPE_CHECKING:
    from cpprune.models.artifact import Model
    from shards.reader import Split

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
    was_training = network.training
    network.eval()
    if fetch is None:
        split.dataset.prefetch(split.ids)
    own = rank_slice(np.arange(len(split)), rank(), world_size())
    parts = []
    for begin in range(0, len(own), CHUNK):
        positions = own[begin : begin + CHUNK]
        clips = fetch(positions) if fetch else torch.from_numpy(split.fetch(positions))
        x = features(clips.to(device))
        parts.append(network(x.to(memory_format=torch.channels_last)).float())
    network.train(was_training)
    logits = torch.cat(parts) if parts else _no_rows(network, features, split, device)
    return all_gather_rows(logits, len(split)).cpu().numpy()


def _no_rows(network: nn.Module, features: FrontEnd, split: Split, device: torch.device) -> Tensor:
    clip = torch.from_numpy(split.fetch([0])).to(device)
    logits: Tensor = network(features(clip)).float()
    return logits[:0]


def evaluate_model(
    model: Model, split: Split, device: torch.device
) -> tuple[dict[str, Any], metrics.Floats]:
    """Return the full report on a split, and the log-probabilities [N, K] that it was made from.

    Raises:
        UserError: the model's output is not finite.
    """
    logits = predict_split(model.network, model.features, split, device)
    log_prob = metrics.log_softmax(logits)
    wrong = np.flatnonzero(~np.isfinite(log_prob).all(1))
    if len(wrong):
        raise UserError(
            f"the model's output is not finite for {len(wrong):,} of {len(split):,} clips, such as "
            f"{split.dataset.key(int(split.ids[wrong[0]]))}; {DIVERGED}"
        )
    columns = {name: split.column(name) for name in split.dataset.groups}
    return metrics.full_report(log_prob, split.labels, model.classes, columns), log_prob


def predict_file(model: Model, path: Path) -> tuple[NDArray[np.float64], int]:
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
    with torch.no_grad():
        for begin in range(0, number, CHUNK):
            places = range(begin, min(begin + CHUNK, number))
            clips = np.stack([cut(samples, place, length) for place in places])
            parts.append(model(torch.from_numpy(clips)))
    if not torch.cat(parts).isfinite().all():
        raise UserError(f"{path}: the model's output is not finite; {DIVERGED}")
    probabilities = np.exp(metrics.log_softmax(torch.cat(parts).numpy()))
    sound = np.minimum(length, len(samples) - length * np.arange(number))
    return np.average(probabilities, axis=0, weights=sound), number
