"""Datasets that fit a model, and those that do not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import cpprune
import shards
from cpprune.audio.config import MelSpec
from cpprune.audio.frontend import build_features
from cpprune.data.compatibility import check_compatible, open_for_model
from cpprune.models.artifact import Model
from shards import Dataset, UserError
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions

RATE = 8000
CLIP = 400
CLASSES = ("bus", "metro", "tram")
SPEC = MelSpec(
    sample_rate=RATE, window=64, hop=10, n_fft=64, n_mels=40, fmin_jitter=0, fmax_jitter=500
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of four recordings, 400 samples at 8000 Hz each."""
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (place / "source" / name).mkdir(parents=True)
        for recording in range(4):
            clip = rng.uniform(-0.5, 0.5, CLIP)
            path = place / "source" / name / f"{recording}.wav"
            soundfile.write(path, clip, RATE, subtype="PCM_16")
    options = BuildOptions(
        kind="folder", source=place / "source", seconds=CLIP / RATE, sample_rate=RATE
    )
    build_dataset(options, place / "dataset", workers=1)
    return place / "dataset"


@pytest.fixture
def dataset(folder: Path) -> Iterator[Dataset]:
    opened = shards.open_dataset(folder)
    yield opened
    opened.close()


def make_model(**changes: Any) -> Model:
    settings: dict[str, Any] = {"classes": CLASSES, "clip_shape": (CLIP,), "spec": SPEC} | changes
    network = cpprune.build_model(
        "cp_resnet", num_classes=len(settings["classes"]), widths=[2, 2, 2]
    )
    return Model(
        network,
        build_features(settings.pop("spec")),
        family="cp_resnet",
        config={"widths": [2, 2, 2]},
        **settings,
    )


def test_a_dataset_that_fits(folder: Path, dataset: Dataset) -> None:
    model = make_model()
    check_compatible(dataset, model)
    opened = open_for_model(str(folder), model)
    assert opened.fingerprint == dataset.fingerprint
    clips = torch.from_numpy(dataset.fetch([0, 1]))
    logits: Tensor = model.eval()(clips)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": None, "clip_shape": (1, 28, 28)}, r"holds audio.*images of shape \[1, 28, 28\]"),
        (
            {"spec": replace(SPEC, sample_rate=16_000)},
            "sample rate 8000 Hz.*model's is 16000 Hz.*--sample-rate 16000",
        ),
        ({"clip_shape": (800,)}, r"clips have shape \[400\].*made for \[800\]"),
        ({"spec": replace(SPEC, n_fft=1024)}, r"400 samples are too short for features.n_fft=1024"),
        ({"spec": replace(SPEC, n_fft=798)}, r"400 samples are too short for features.n_fft=798"),
        ({"classes": ("bus", "metro", "zoo")}, r"other classes .*differing: tram, zoo\)"),
        ({"classes": ("metro", "bus", "tram")}, r"other classes .*differing: their order\)"),
        ({"classes": CLASSES[:2]}, r"other classes .*differing: tram\)"),
        ({"classes": tuple("abcdefgh")}, r"other classes .*differing: a, b, bus, c, d …\)"),
    ],
)
def test_a_dataset_that_does_not_fit(
    changes: dict[str, Any], message: str, dataset: Dataset
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_compatible(dataset, make_model(**changes))
    assert str(dataset.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_do_not_fit_a_model_for_audio(dataset: Dataset) -> None:
    dataset.kind, dataset.sample_rate, dataset.shape = "image", None, (1, 28, 28)
    with pytest.raises(UserError, match=r"images of shape \[1, 28, 28\].*features.preset=image"):
        check_compatible(dataset, make_model())
    check_compatible(dataset, make_model(spec=None, clip_shape=(1, 28, 28)))
    with pytest.raises(UserError, match=r"clips have shape \[1, 28, 28\]"):
        check_compatible(dataset, make_model(spec=None, clip_shape=(1, 32, 32)))


def test_a_clip_just_long_enough_fits(dataset: Dataset) -> None:
    model = make_model(spec=replace(SPEC, n_fft=796))
    check_compatible(dataset, model)
    model.features(torch.from_numpy(dataset.fetch([0])))


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        open_for_model(str(tmp_path / "nothing"), make_model())
