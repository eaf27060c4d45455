"""The front end of DALI: the same numbers as torch's, the same order, the same bits after a stop."""

import os
import sys

import numpy as np
import pytest
import torch
from run_folder import assert_same_run, ids_of, metrics, weights_of

from cpprune.audio.config import PRESETS, MelSpec
from cpprune.audio.dali import on_dali
from cpprune.audio.frontend import LOG_OFFSET, LogMel, ScaleImage
from shards import UserError

pytestmark = pytest.mark.dali
if "CI" not in os.environ:
    pytest.importorskip("nvidia.dali")

TOLERANCE = 1e-3
SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", 9, "--train.epochs", 2]
SETTINGS += ["--data.train_fraction", 0.25, "--data.record_ids", "true", "--augment.roll", 500]
SETTINGS += ["--optim.schedule", "constant"]
DALI = ["--features.backend", "dali"]


def noise(clips=3, samples=32_000):
    """Loud noise, quiet noise, and full scale."""
    rng = np.random.default_rng(0)
    waves = rng.normal(0, 1, (clips, samples)) * np.array([3000, 30, 30_000])[:clips, None]
    return torch.from_numpy(waves.clip(-32768, 32767).astype(np.int16))


def reference(spec, wave, bank):
    """Log-mel in float64: pre-emphasis, transforms one by one, the bank."""
    x = wave.numpy().astype(np.float64) / 32768
    if spec.pre_emphasis:
        x = x[:, 1:] - spec.pre_emphasis * x[:, :-1]
    n, half = spec.window, spec.n_fft // 2
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / (n if spec.periodic_window else n - 1))
    window = np.pad(window, ((spec.n_fft - n) // 2, spec.n_fft - n - (spec.n_fft - n) // 2))
    x = np.pad(x, ((0, 0), (half, half)), mode="reflect")
    starts = range(0, x.shape[1] - spec.n_fft + 1, spec.hop)
    power = np.stack(
        [np.abs(np.fft.rfft(x[:, s : s + spec.n_fft] * window)) ** 2 for s in starts], axis=2
    )
    return np.log(np.einsum("fk,bkn->bfn", bank.double().numpy(), power) + LOG_OFFSET)


@pytest.mark.parametrize("name", PRESETS)
def test_features_are_those_of_torch(name):
    spec = PRESETS[name]
    ours, theirs = LogMel(spec), on_dali(LogMel(spec))
    wave = noise()
    expected = reference(spec, wave, ours.eval_bank)
    found = theirs.log_mel(wave)
    assert found.shape == (3, spec.n_mels, spec.frames(32_000))
    assert np.abs(found.numpy() - expected).max() < TOLERANCE
    assert (found - ours.log_mel(wave)).abs().max() < TOLERANCE
    edges = torch.tensor([7.0, 15_400.0])
    assert (theirs(wave, edges) - ours(wave, edges)).abs().max() < TOLERANCE
    assert (theirs(wave, edges) - ours(wave)).abs().max() > 10 * TOLERANCE


def test_a_clip_is_the_same_in_any_batch_and_as_fractions():
    features = on_dali(LogMel(PRESETS["passt_128"]))
    wave = noise()
    whole = features(wave)
    assert torch.equal(features(wave[1:2]), whole[1:2])
    assert torch.equal(features(torch.cat((wave, wave))), torch.cat((whole, whole)))
    assert torch.equal(features(wave / 32768.0), whole)
    assert features(wave[:0]).shape == (0, *whole.shape[1:])
    assert features(wave[:, :8_000]).shape[-1] == features.spec.frames(8_000)


def test_a_window_shorter_than_its_transform():
    spec = MelSpec(sample_rate=8_000, window=64, hop=10, n_fft=96, n_mels=10, fmax_jitter=500)
    wave = noise(2, 400)
    found = on_dali(LogMel(spec)).log_mel(wave)
    expected = reference(spec, wave, LogMel(spec).eval_bank)
    assert np.abs(found.numpy() - expected).max() < TOLERANCE


def test_images_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(UserError, match=r"features.backend=dali: images have no front end"):
        on_dali(ScaleImage())
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"DALI is not installed; pip install 'cpprune\[dali\]'"):
        on_dali(LogMel(MelSpec()))


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits(cli, stop_at, scenes, tmp_path, refused):
    command = ["train", *SETTINGS, "--data.path", scenes, "--run"]
    assert cli(*command, tmp_path / "torch").status == 0
    assert cli(*command, tmp_path / "whole", *DALI).status == 0
    assert ids_of(tmp_path / "whole") == ids_of(tmp_path / "torch")
    for ours, theirs in zip(metrics(tmp_path / "torch"), metrics(tmp_path / "whole"), strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-2)
    with stop_at(7):  # in the second epoch
        more = ["--train.checkpoint_steps", 1]
        assert cli(*command, tmp_path / "run", *DALI, *more).status == 130
    names = ["features.backend: dali then, torch now"]
    refused(*command, tmp_path / "run", names=names)
    assert cli(*command, tmp_path / "run", *DALI).status == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    weights = weights_of(tmp_path / "run")
    others = weights_of(tmp_path / "torch")
    assert any(not torch.equal(weights[name], others[name]) for name in weights), "DALI was used"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    for spec in PRESETS.values():
        ours = LogMel(spec)
        theirs = on_dali(LogMel(spec)).cuda()
        found = theirs(noise().cuda())
        assert found.is_cuda
        assert (found.cpu() - ours(noise())).abs().max() < TOLERANCE
