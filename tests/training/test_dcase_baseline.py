"""One training step of the DCASE 2024 baseline, written down here in float64, and ours.

Roll, mel spectrogram (HTK), frequency mask, logarithm, Freq-MixStyle, CP-Mobile with batch statistics,
mean cross-entropy: the same loss and the same gradients for the same clips, weights and random numbers.
The spectrograms are compared as the front end computes them, in float32. The gradients are compared with
our network in float64: they are small differences of large numbers, of which float32 leaves two digits.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cpprune.config import build_parser, parse
from cpprune.training import engine, loop, step

RECIPE = Path(__file__).parents[2] / "configs/recipes/dcase24_baseline.yaml"
RATE, WINDOW, HOP, FFT, MELS = 32_000, 3072, 500, 4096, 256


def hertz_to_mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def mel_bank() -> Tensor:
    """[F, K]: triangles with their corners at equal distances in mel, from 0 to 16 kHz."""
    corners = np.linspace(hertz_to_mel(0), hertz_to_mel(RATE / 2), MELS + 2)
    corners = 700 * (10 ** (corners / 2595) - 1)
    bins = np.linspace(0, RATE / 2, FFT // 2 + 1)
    bank = np.zeros((MELS, len(bins)))
    for mel in range(MELS):
        low, centre, high = corners[mel : mel + 3]
        rise, fall = (bins - low) / (centre - low), (high - bins) / (high - centre)
        bank[mel] = np.maximum(0, np.minimum(rise, fall))
    return torch.from_numpy(bank)


def spectrogram(clips: Tensor, sampled: Mapping[str, Tensor]) -> Tensor:
    """Augmented log-mel spectrograms [B, 1, F, N]."""
    waves = [
        torch.roll(wave, int(by)) for wave, by in zip(clips.double(), sampled["roll"], strict=True)
    ]
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    spectrum = torch.stft(torch.stack(waves) / 32768, FFT, HOP, WINDOW, window, return_complex=True)
    mel = mel_bank() @ spectrum.abs().square()
    for row, (width, place) in enumerate(sampled["freq_mask"].double()):
        start = place * (MELS - 48 * width)
        mel[row, int(start) : int(start + 48 * width)] = 0
    x = (mel + 1e-5).log().unsqueeze(1)
    lam = sampled["mixstyle"].double().view(-1, 1, 1, 1)
    partner = sampled["mixstyle_partner"]
    mean, deviation = x.mean((1, 3), keepdim=True), (x.var((1, 3), keepdim=True) + 1e-6).sqrt()
    mixed_mean = mean * lam + mean[partner] * (1 - lam)
    mixed_deviation = deviation * lam + deviation[partner] * (1 - lam)
    return (x - mean) / deviation * mixed_deviation + mixed_mean


def logits(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """CP-Mobile in training mode."""

    def unit(conv: str, norm: str, x: Tensor, stride: tuple[int, int] = (1, 1)) -> Tensor:
        weight = weights[f"{conv}.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
        scale, shift = (weights[f"{norm}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    for i in (0, 1):
        x = F.relu(unit(f"in_c.{i}.0", f"in_c.{i}.1", x, (2, 2)))
    for stage, number in ((1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6)):
        name = f"stages.s{stage}.b{number}.block"
        stride = {3: (1, 2), 4: (2, 1)}.get(number, (1, 1))
        y = F.relu(unit(f"{name}.0.0", f"{name}.0.1", x))
        y = F.relu(unit(f"{name}.1.0", f"{name}.1.1", y, stride))
        y = unit(f"{name}.2.0", f"{name}.2.1", y)
        if y.shape[1] == x.shape[1]:
            y = y + (x if stride == (1, 1) else F.avg_pool2d(x, 3, stride, padding=1))
        x = F.relu(y)
    return unit("feed_forward.0", "feed_forward.1", x).mean((2, 3))


class Seen(Exception):
    """The step has been taken as far as it matters."""


@pytest.fixture
def our_step(scenes, tmp_path, monkeypatch):
    """Inputs, first weights, gradients and summed loss of the first step of the recipe's run."""
    seen = {}
    inputs, augmented = step.TrainingStep.inputs, step.augmented

    def noted_inputs(self, *words):
        seen["inputs"] = inputs(self, *words)
        network = self.engine.model.network.double()
        seen["weights"] = {
            name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()
        }
        return seen["inputs"]

    def noted_augmented(*words):
        seen["x"] = augmented(*words)
        return seen["x"].double()

    def noted_update(self, loss_sum, *_):
        seen["loss"] = float(loss_sum)
        seen["gradients"] = {n: p.grad for n, p in self.model.network.named_parameters()}
        raise Seen

    monkeypatch.setattr(step.TrainingStep, "inputs", noted_inputs)
    monkeypatch.setattr(step, "augmented", noted_augmented)
    monkeypatch.setattr(engine.Engine, "update", noted_update)
    words = ["--config", RECIPE, "--data.path", scenes, "--run", tmp_path / "run"]
    words += ["--data.train_fraction", 0.25, "--train.batch_size", 12, "--seed", 3]
    words += ["--augment.mixstyle_p", 1]  # as in two batches of five
    parsed = parse(build_parser("cpprune train", "", {}), [str(word) for word in words], [])
    with pytest.raises(Seen):
        loop.train(parsed.config, parsed.explicit)
    return seen


def test_loss_and_gradients_are_those_of_the_baseline(our_step):
    given, weights = our_step["inputs"], our_step["weights"]
    assert {"roll", "freq_mask", "mixstyle"} <= given.keys()
    x = spectrogram(given["clips"], given)
    # Where little is left beside a loud bin, the Fourier transform in float32 leaves three digits.
    error = (our_step["x"].double() - x).abs()
    assert error.max() < 3e-3
    assert error.mean() < 5e-5
    loss = F.cross_entropy(logits(weights, x), given["labels"]).detach()
    assert our_step["loss"] / 12 == pytest.approx(float(loss), rel=1e-5)

    F.cross_entropy(logits(weights, our_step["x"].double()), given["labels"]).backward()
    assert len(weights) == len(our_step["gradients"]) == 63
    for name, gradient in our_step["gradients"].items():
        expected = weights[name].grad
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5 * expected.abs().max())
