"""Predictions of a model over a split, or over audio files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cpprune.audio.frontend import FrontEnd
from cpprune.data.prefetch import Fetch
from cpprune.distributed.collectives import gather_rows
from cpprune.distributed.process_group import rank, world_size
from cpprune.evaluation import metrics
from shards.errors import InputError
from shards.files.atomic import write_output
from shards.order import rank_slice

if TYPE_CHECKING:
    from cpprune.models.artifact import Model
    from shards.reader import Split

# Clips a forward pass: bounds memory, and changes no result.
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

    Each rank predicts a slice; each clip is predicted once. The network is left in the mode it was
    in.

    Args:
        network: x_BCFT → logits.
        features: the front end.
        split: of an open dataset.
        device: of network and front end.
        fetch: returns the split's clips by their position; without it they are read from the shards.
    """
    was_training = network.training
    network.eval()
    if fetch is None:
        split.dataset.expect(split.ids)
    own = rank_slice(np.arange(len(split)), rank(), world_size())
    parts = []
    for begin in range(0, len(own), CHUNK):
        positions = own[begin : begin + CHUNK]
        clips = fetch(positions) if fetch else torch.from_numpy(split.fetch(positions))
        x = features(clips.to(device))
        parts.append(network(x.to(memory_format=torch.channels_last)).float())
    network.train(was_training)
    logits = torch.cat(parts) if parts else _no_rows(network, features, split, device)
    return gather_rows(logits, len(split)).cpu().numpy()


def _no_rows(network: nn.Module, features: FrontEnd, split: Split, device: torch.device) -> Tensor:
    clip = torch.from_numpy(split.fetch([0])).to(device)
    logits: Tensor = network(features(clip)).float()
    return logits[:0]


def evaluate_split(
    network: nn.Module, features: FrontEnd, split: Split, device: torch.device
) -> dict[str, Any]:
    """Return macro_accuracy, accuracy, log_loss and clips of a split, the same on every rank."""
    logits = predict_split(network, features, split, device)
    return metrics.summary(metrics.log_softmax(logits), split.labels)


def evaluate_model(
    model: Model, split: Split, device: torch.device
) -> tuple[dict[str, Any], metrics.Floats]:
    """Return the full report on a split, and the log-probabilities [N, K] it rests on.

    Raises:
        InputError: the model's output is not finite.
    """
    logits = predict_split(model.network, model.features, split, device)
    log_prob = metrics.log_softmax(logits)
    wrong = np.flatnonzero(~np.isfinite(log_prob).all(1))
    if len(wrong):
        raise InputError(
            f"the model's output is not finite for {len(wrong):,} of {len(split):,} clips, such as "
            f"{split.dataset.key(int(split.ids[wrong[0]]))}; {DIVERGED}"
        )
    columns = {name: split.column(name) for name in split.dataset.groups}
    return metrics.full_report(log_prob, split.labels, model.classes, columns), log_prob


def write_submission(
    path: Path, filenames: list[str], classes: tuple[str, ...], log_prob_NK: metrics.Floats
) -> None:
    """Write predictions in DCASE's form: tab-separated filename, scene_label, one column a class."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["filename", "scene_label", *classes])
    for name, row in zip(filenames, log_prob_NK, strict=True):
        writer.writerow([name, classes[int(row.argmax())], *(f"{p:.6f}" for p in np.exp(row))])
    # Names of files need not be text.
    write_output(path, text.getvalue().encode(errors="surrogateescape"), "--predictions")


def submission_names(split: Split) -> list[str]:
    """Return the file names of a split's clips, as the dataset's own lists have them."""
    if split.dataset.manifest.source.get("kind") == "tau2022":
        return [f"audio/{key}.wav" for key in split.keys]
    return list(split.keys)


def predict_file(model: Model, path: Path) -> tuple[NDArray[np.float64], int]:
    """Return the mean probabilities [K] over an audio file's clips, and how many those are.

    The file is read and cut as the shard builder does it: any format, rate and number of channels;
    the rest of a longer file is a clip if it fills half of one. A clip counts by how much of it is
    sound.

    Raises:
        BadFile: it is no audio, or not all of it is there.
        InputError: the model's output is not finite.
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
        raise InputError(f"{path}: the model's output is not finite; {DIVERGED}")
    probabilities = np.exp(metrics.log_softmax(torch.cat(parts).numpy()))
    sound = np.minimum(length, len(samples) - length * np.arange(number))
    return np.average(probabilities, axis=0, weights=sound), number
