"""Checks that a dataset fits a model: kind, sample rate, shape and classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

import shards
from cpprune.models.artifact import Model
from cpprune.models.classifier import Classifier
from cpprune.models.example import example_input
from cpprune.models.routed import RoutedModel
from shards.errors import UserError

if TYPE_CHECKING:
    from shards.reader import Dataset


def open_for_model(
    path: str, model: Classifier | RoutedModel, cache: str | None = None, cache_bytes: int = 0
) -> Dataset:
    """Open a dataset that a model can read; the arguments are those of `shards.open_dataset`.

    Raises:
        UserError: there is no such dataset, or its rate, shape or classes are not the model's.
    """
    dataset = shards.open_dataset(path, cache, cache_bytes)
    check_fits(dataset, model)
    return dataset


def check_fits(dataset: Dataset, model: Classifier | RoutedModel) -> None:
    """Raise UserError unless a dataset fits a model, and has the column by which clips are routed."""
    if isinstance(model, RoutedModel):
        if model.models:
            dataset.texts(model.column, 0, 0)
        model = model.general
    check_compatible(dataset, model)


def check_compatible(dataset: Dataset, model: Classifier) -> None:
    """Raise UserError, naming what differs, unless a dataset's clips and classes fit the model."""
    path = dataset.path
    if dataset.kind == "image" and model.sample_rate is not None:
        raise UserError(
            f"{path}: holds images of shape {list(dataset.shape)}, but the model's front end wants "
            f"audio at {model.sample_rate} Hz; for images set features.preset=image"
        )
    if dataset.kind == "audio" and model.sample_rate is None:
        raise UserError(
            f"{path}: holds audio, but the model takes images of shape {list(model.clip_shape)}; "
            "for audio set features.preset to cpjku22_256, passt_128, dcase24 or cpjku23"
        )
    if dataset.sample_rate != model.sample_rate:
        raise UserError(
            f"{path}: sample rate {dataset.sample_rate} Hz, but the model's is {model.sample_rate} "
            f"Hz; build the dataset with --sample-rate {model.sample_rate}"
        )
    if tuple(dataset.shape) != tuple(model.clip_shape):
        raise UserError(
            f"{path}: clips have shape {list(dataset.shape)}, but the model was made for "
            f"{list(model.clip_shape)}; build the dataset with clips of the same length"
        )
    features = model.features if isinstance(model, Model) else None
    spec = features.spec if features else None
    if features and spec and dataset.shape[0] < features.min_samples:
        raise UserError(
            f"{path}: clips of {dataset.shape[0]} samples are too short for features.n_fft"
            f"={spec.n_fft}; build the dataset with longer clips (--seconds)"
        )
    if tuple(dataset.classes) != model.classes:
        odd = sorted(set(dataset.classes) ^ set(model.classes)) or ["their order"]
        raise UserError(
            f"{path}: has other classes than the model (differing: {', '.join(odd[:5])}"
            f"{' …' if len(odd) > 5 else ''}); evaluate it with a model trained on these classes, or "
            "train on from this one with init_head=new"
        )
    if isinstance(model, Model):
        _check_network_input(path, model)


def _check_network_input(path: Path | str, model: Model) -> None:
    try:
        with torch.no_grad():
            example = example_input(model.network, model.input_shape)
            was_training = model.network.training
            model.network.eval()(example)
            model.network.train(was_training)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: its clips give the network an input of shape {list(model.input_shape)}, which it "
            f"cannot take ({reason}); build the dataset with longer clips (--seconds)"
        ) from None
