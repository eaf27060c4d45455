"""Augmentation: random parameters of a batch, and the operations that use them.

All random numbers of a global batch are sampled at once from (seed, epoch, batch) on the host, so that
a step never synchronises and any number of ranks and workers uses the same ones; each rank takes the
rows of its slice.

Shapes: B global batch, b this rank's part of it, T samples, C channels, F mel bins, N frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.audio.config import AugmentConfig, MelSpec
from cpprune.audio.frontend import FrontEnd
from cpprune.audio.impulse_responses import convolved
from shards.random_stream import RandomStream

Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sampled:
    """Random parameters of one global batch; None where an augmentation is off."""

    band_edges: NDArray[np.float32] | None
    roll: NDArray[np.int64] | None
    mixstyle: tuple[NDArray[np.float32], NDArray[np.int64]] | None
    mixup: tuple[NDArray[np.float32], NDArray[np.int64]] | None
    freq_mask: NDArray[np.float32] | None
    time_mask: NDArray[np.float32] | None
    response: NDArray[np.int64] | None = None

    def of_rows(self, rows: slice) -> dict[str, Tensor]:
        """Return the parameters of these rows of the batch for `augmented`, on the host."""
        found: dict[str, NDArray[np.generic]] = {}
        for name in ("response", "roll", "freq_mask", "time_mask"):
            if (values := getattr(self, name)) is not None:
                found[name] = values[rows]
        for name in ("mixstyle", "mixup"):
            if (values := getattr(self, name)) is not None:
                found[name], found[f"{name}_partner"] = values[0][rows], values[1][rows]
        if self.band_edges is not None:
            found["band_edges"] = self.band_edges
        return {name: torch.from_numpy(values) for name, values in found.items()}


NOTHING_SAMPLED = Sampled(None, None, None, None, None, None)


def sample(
    config: AugmentConfig,
    spec: MelSpec | None,
    seed: int,
    epoch: int,
    batch: int,
    size: int,
    responses: int = 0,
) -> Sampled:
    """Sample the parameters of global batch `batch` of `epoch`, which has `size` clips.

    Each augmentation has its own random stream, so that switching one on changes no other.

    Args:
        config: which, and their numbers.
        spec: the front end; None for images.
        seed: of the run.
        epoch: from 0.
        batch: number in the epoch, from 0.
        size: clips in the global batch.
        responses: number of impulse responses.
    """

    def stream(number: int) -> RandomStream:
        return RandomStream(seed, epoch, batch, number)

    def mixing(own: RandomStream, alpha: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return own.symmetric_beta(alpha, size).astype(np.float32), own.permutation(size)

    def mask(own: RandomStream, widest: int) -> NDArray[np.float32] | None:
        return own.uniform(size, 2).astype(np.float32) if widest else None

    band_edges = None
    if spec is not None and config.band_jitter and (spec.fmin_jitter or spec.fmax_jitter):
        widest = np.array([max(spec.fmin_jitter, 1), max(spec.fmax_jitter, 1)])
        fmin, below = stream(0).integers(widest, 2)
        band_edges = np.array([fmin, spec.fmax + spec.fmax_jitter / 2 - below], np.float32)
    roll = stream(1).integers(2 * config.roll + 1, size) - config.roll if config.roll else None
    response = None
    if responses:
        own = stream(6)
        hit = own.uniform(size) < config.impulse_response_p
        response = np.where(hit, own.integers(responses, size), -1)
    own = stream(2)
    mixed = own.uniform(1)[0] < config.mixstyle_p
    return Sampled(
        band_edges=band_edges,
        roll=roll,
        mixstyle=mixing(own, config.mixstyle_alpha) if mixed else None,
        mixup=mixing(stream(3), config.mixup_alpha) if config.mixup_alpha else None,
        freq_mask=mask(stream(4), config.freq_mask),
        time_mask=mask(stream(5), config.time_mask),
        response=response,
    )


def roll_waves(wave_bT: Tensor, shift_b: Tensor) -> Tensor:
    """Roll each waveform circularly to the right by its own number of samples."""
    samples = wave_bT.shape[1]
    index = torch.arange(samples, device=wave_bT.device) - shift_b[:, None]
    return wave_bT.gather(1, index.remainder(samples))


def freq_mixstyle(
    x_bCFN: Tensor, lam_b: Tensor, partner_b: Tensor, gather: Gather = lambda x: x
) -> Tensor:
    """Mix the statistics of each mel bin with those of another clip (Freq-MixStyle).

    Source: Schmid et al., CP-JKU submission to DCASE 2022 task 1, after Zhou et al., "Domain
    Generalization with MixStyle", ICLR 2021. Mean and unbiased variance are taken over channels and
    frames; x is brought to λ·own + (1 − λ)·partner's mean and deviation.

    Args:
        x_bCFN: this rank's spectrograms.
        lam_b: λ for each of them, [b].
        partner_b: row of each one's partner in the global batch, [b].
        gather: returns the rows of all ranks, in rank order, given this rank's.
    """
    x = x_bCFN
    mean = x.mean((1, 3), keepdim=True).detach()
    # Written out, since var() warns where a rank holds no clip of the last batch.
    centred = x - mean
    variance = centred.square().sum((1, 3), keepdim=True) / (x.shape[1] * x.shape[3] - 1)
    deviation = (variance + 1e-6).sqrt().detach()
    # Both statistics in one tensor: half as many kernels.
    statistics = torch.cat((mean, deviation), dim=1)
    lam = lam_b.view(-1, 1, 1, 1)
    statistics = statistics * lam + gather(statistics)[partner_b] * (1 - lam)
    mixed_mean, mixed_deviation = statistics[:, :1], statistics[:, 1:]
    mixed: Tensor = centred / deviation * mixed_deviation + mixed_mean
    return mixed


def mixup(x_bCFN: Tensor, lam_b: Tensor, partner_b: Tensor, gather: Gather = lambda x: x) -> Tensor:
    """Return λ·x + (1 − λ)·partner (Zhang et al., "mixup", ICLR 2018); arguments as above."""
    lam = lam_b.view(-1, 1, 1, 1)
    return x_bCFN * lam + gather(x_bCFN)[partner_b] * (1 - lam)


def mask_axis(x_bCFN: Tensor, uniform_b2: Tensor, widest: int, dim: int, fill: float) -> Tensor:
    """Mask one range of an axis in each spectrogram (Park et al., "SpecAugment", 2019).

    Args:
        x_bCFN: spectrograms.
        uniform_b2: two uniform numbers for each: width as a fraction of `widest`, and position.
        widest: widest mask, in bins or frames.
        dim: axis: −2 masks mel bins, −1 frames.
        fill: value of silence.
    """
    size = x_bCFN.shape[dim]
    width = uniform_b2[:, :1] * min(widest, size)
    start = uniform_b2[:, 1:] * (size - width)
    position = torch.arange(size, device=x_bCFN.device)
    masked = (position >= start.floor()) & (position < (start + width).floor())
    shape = [x_bCFN.shape[0], 1, 1, 1]
    shape[dim] = size
    return x_bCFN.masked_fill(masked.view(shape), fill)


@torch.no_grad()
def augmented(
    features: FrontEnd,
    clips_b: Tensor,
    sampled_b: Mapping[str, Tensor],
    config: AugmentConfig,
    gather: Gather = lambda x: x,
    responses_RN: Tensor | None = None,
) -> Tensor:
    """Return x_bCFN of this rank's clips, augmented.

    Args:
        features: the front end.
        clips_b: this rank's clips.
        sampled_b: from `Sampled.of_rows`, on the device of the clips.
        config: order and widths of the masks.
        gather: returns the rows of all ranks, in rank order, given this rank's.
        responses_RN: impulse responses, on the device of the clips.
    """

    def masked(x: Tensor) -> Tensor:
        for name, widest, dim in (
            ("freq_mask", config.freq_mask, -2),
            ("time_mask", config.time_mask, -1),
        ):
            if name in sampled_b:
                x = mask_axis(x, sampled_b[name], widest, dim, features.silence)
        return x

    if "response" in sampled_b and responses_RN is not None:
        clips_b = convolved(clips_b, responses_RN, sampled_b["response"])
    if "roll" in sampled_b and features.spec is not None:
        clips_b = roll_waves(clips_b, sampled_b["roll"])
    x: Tensor = features(clips_b, sampled_b.get("band_edges"))
    if config.mask_first:
        x = masked(x)
    if "mixstyle" in sampled_b:
        x = freq_mixstyle(x, sampled_b["mixstyle"], sampled_b["mixstyle_partner"], gather)
    if "mixup" in sampled_b:
        x = mixup(x, sampled_b["mixup"], sampled_b["mixup_partner"], gather)
    return x if config.mask_first else masked(x)
