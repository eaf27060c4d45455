"""Impulse responses against numpy's convolution in float64."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from run_folder import assert_same_run, weights_of

import cpprune
from cpprune.audio.augment import augmented, sample
from cpprune.audio.config import PRESETS, AugmentConfig
from cpprune.audio.impulse_responses import (
    ImpulseResponses,
    contents_hash,
    convolved,
    load_responses,
)
from shards.reader import open_dataset

RATE = 32_000


def response(seed: int, samples: int) -> np.ndarray:
    """A decaying noise, its first sample the largest."""
    rng = np.random.default_rng(seed)
    wave = 0.1 * rng.normal(size=samples) * np.exp(-np.arange(samples) / (samples / 5))
    wave[0] = 0.9
    return wave


@pytest.fixture
def folder(tmp_path):
    """Three responses: at the clips' rate, at another and in stereo, and longer than a clip."""
    place = tmp_path / "responses"
    (place / "b").mkdir(parents=True)
    soundfile.write(place / "a.wav", response(0, 700), RATE, subtype="FLOAT")
    both = np.stack([response(1, 900), response(2, 900)], 1)
    soundfile.write(place / "b/1.WAV", both, 44_100, subtype="FLOAT")
    soundfile.write(place / "c.wav", 3 * response(3, 50_000), RATE, subtype="FLOAT")
    (place / "licence.txt").write_text("free")
    return place


def loaded(folder, dataset=None, samples=32_000, rate=RATE, **settings):
    config = AugmentConfig(impulse_responses=str(folder), **settings)
    return load_responses(config, dataset, [samples], rate)


def test_a_clip_is_convolved_with_its_response_and_cut():
    rng = np.random.default_rng(0)
    clips = rng.integers(-20_000, 20_000, (4, 3000), dtype=np.int16)
    waves = np.zeros((2, 500), np.float32)
    waves[0, :80], waves[1] = response(0, 80), response(1, 500)
    chosen = [1, -1, 0, 1]
    actual = convolved(torch.from_numpy(clips), torch.from_numpy(waves), torch.tensor(chosen))
    for clip, own, row in zip(clips / 32768.0, actual.numpy(), chosen, strict=True):
        whole = clip if row < 0 else np.convolve(clip, waves[row].astype(np.float64))[:3000]
        np.testing.assert_allclose(own, whole, rtol=0, atol=2e-6)
    assert (actual[1] == torch.from_numpy(clips[1]) / 32768).all(), "to the bit"
    floats = convolved(
        torch.from_numpy(clips) / 32768, torch.from_numpy(waves), torch.tensor(chosen)
    )
    assert torch.equal(floats, actual)
    nothing = convolved(
        torch.zeros(0, 3000), torch.from_numpy(waves), torch.zeros(0, dtype=torch.int64)
    )
    assert nothing.shape == (0, 3000)


def test_responses_are_read_in_order_of_their_names_resampled_and_not_scaled(folder):
    found = loaded(folder)
    assert found.waves.shape == (3, 32_000)
    first, second, third = found.waves.numpy()
    np.testing.assert_allclose(first[:700], response(0, 700), atol=1e-7)
    assert not first[700:].any()
    mean = (response(1, 900) + response(2, 900)) / 2
    expected = soxr.resample(mean, 44_100, RATE, quality="HQ")
    np.testing.assert_allclose(second[: len(expected)], expected, atol=1e-5)
    np.testing.assert_allclose(third, 3 * response(3, 50_000)[:32_000], atol=1e-6)
    assert str(found) == f"{folder}: 3 impulse responses"
    assert loaded(folder, samples=300).waves.shape == (3, 300)


def test_a_share_of_the_clips_is_convolved_with_any_response():
    config = AugmentConfig(impulse_response_p=0.4)
    drawn = [sample(config, None, 0, 1, number, 64, 5).response for number in range(200)]
    chosen = np.concatenate([d for d in drawn if d is not None])
    assert len(chosen) == 12_800
    assert abs((chosen >= 0).mean() - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 12_800)
    counts = np.bincount(chosen[chosen >= 0])
    assert len(counts) == 5
    assert abs(counts / counts.sum() - 0.2).max() < 0.03
    assert sample(config, None, 0, 1, 0, 64).response is None
    again = sample(replace(config, mixstyle_p=1, roll=9), PRESETS["dcase24"], 0, 1, 0, 64, 5)
    assert (again.response == drawn[0]).all(), "other augmentations change nothing"


def test_clips_are_convolved_before_they_are_rolled():
    features = cpprune.log_mel("dcase24")
    rng = np.random.default_rng(0)
    wave = rng.uniform(-0.3, 0.3, (3, 8000)).astype(np.float32)
    waves = torch.from_numpy(np.stack([response(0, 900), response(1, 900)]).astype(np.float32))
    config = AugmentConfig(mixstyle_p=0, roll=2000, impulse_response_p=0.7)
    drawn = replace(sample(config, features.spec, 0, 0, 0, 3), response=np.array([1, -1, 0]))
    assert drawn.roll is not None
    expected = [
        np.roll(w if row < 0 else np.convolve(w, waves[row].double().numpy())[:8000], by)
        for w, row, by in zip(wave.astype(np.float64), drawn.response, drawn.roll, strict=True)
    ]
    of_clips = drawn.of_rows(slice(0, 3))
    actual = augmented(features, torch.from_numpy(wave), of_clips, config, responses_RN=waves)
    reference = features(torch.from_numpy(np.array(expected, np.float32)))
    torch.testing.assert_close(actual, reference, rtol=0, atol=1e-3)


def test_only_clips_of_some_devices(folder, scenes):
    dataset = open_dataset(scenes)
    devices = dataset.texts("device")
    found = loaded(folder, dataset, impulse_response_devices=["a", "s1"])
    ids = np.arange(len(devices))
    assert found.rows is not None
    allowed = found.allowed(np.full(len(ids), 2), ids)
    assert (allowed == np.where((devices == "a") | (devices == "s1"), 2, -1)).all()
    assert f"for {int((allowed == 2).sum())} clips" in str(found)
    everyone = ImpulseResponses(found.waves, None, folder)
    assert (everyone.allowed(np.array([0, -1]), ids[:2]) == [0, -1]).all()


SHORT = ["--data.train_fraction", 0.25, "--train.epochs", 2, "--augment.impulse_responses"]


@pytest.mark.slow
def test_a_run_is_convolved_resumes_and_knows_its_responses(
    cli, refused, scenes, tiny, folder, tmp_path, stop_at
):
    command = ["train", *tiny, "--data.path", scenes, *SHORT]
    more = ["--augment.impulse_response_p", 0.5, "--run"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    outcome = cli(*command, folder, *more, whole)
    assert outcome.status == 0, outcome.err
    assert f"{folder}: 3 impulse responses" in outcome.err
    with stop_at(4):
        assert cli(*command, folder, *more, stopped).status == 130
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert cli(*command, moved, *more, stopped).status == 0
    assert_same_run(stopped, whole)
    without = tmp_path / "without"
    assert cli("train", *tiny, "--data.path", scenes, *SHORT[:-1], "--run", without).status == 0
    assert any(
        not torch.equal(one, weights_of(without)[name]) for name, one in weights_of(whole).items()
    )
    # Other responses are another run.
    settings = json.loads((max((whole / "checkpoints").iterdir()) / "state.json").read_text())
    saved = settings["identity"]["settings"]["augment.impulse_responses"]
    assert saved == f"sha256 {contents_hash(folder)}"
    soundfile.write(moved / "a.wav", response(9, 700), RATE, subtype="FLOAT")
    refused(*command, moved, *more, whole, names=["augment.impulse_responses", "other settings"])


def test_what_is_wrong_with_a_folder_is_said_before_anything_is_written(
    refused, scenes, tiny, folder, tmp_path
):
    run = tmp_path / "run"

    def wrong(path, *names, more=()):
        words = ["train", *tiny, "--data.path", scenes, *SHORT, path, "--run", run, *more]
        refused(*words, names=["impulse", path, *names])
        assert not run.exists() or not list(run.iterdir())

    wrong(tmp_path / "none", "no such folder")
    (tmp_path / "empty").mkdir()
    wrong(tmp_path / "empty", "holds no WAV file")
    devices = ("--augment.impulse_response_devices", "[z]")
    refused(
        *("train", *tiny, "--data.path", scenes, *SHORT, folder, "--run", run, *devices),
        names=["augment.impulse_response_devices", "'z'", "s1"],
    )
    bad = Path(shutil.copytree(folder, tmp_path / "bad")) / "b/1.WAV"
    bad.write_bytes(b"RIFF")
    refused(
        *("train", *tiny, "--data.path", scenes, *SHORT, bad.parents[1], "--run", run),
        names=[bad, "impulse response"],
    )
    soundfile.write(bad, np.zeros(100), RATE, format="WAV")
    refused(
        *("train", *tiny, "--data.path", scenes, *SHORT, bad.parents[1], "--run", run),
        names=[bad, "silent"],
    )


def test_devices_without_responses_are_refused(refused, scenes):
    devices = ["--augment.impulse_response_devices", "[a]"]
    names = ["augment.impulse_response_devices=['a']", "set augment.impulse_responses"]
    refused("train", "--data.path", scenes, *devices, names=names)


def test_images_cannot_be_convolved(folder):
    with pytest.raises(cpprune.UserError, match=r"augment\.impulse_responses=.*images"):
        load_responses(AugmentConfig(impulse_responses=str(folder)), None, [1, 28, 28], None)


def test_a_wrong_probability_is_named():
    with pytest.raises(ValueError, match=r"augment\.impulse_response_p=1\.5: must be from 0 to 1"):
        AugmentConfig(impulse_response_p=1.5)
