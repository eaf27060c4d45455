"""Mel filter banks, and the part of each that is not zero.

Shapes: F mel bins, K = n_fft/2 + 1 frequencies of the Fourier transform.

Sources: `torchaudio.compliance.kaldi.get_mel_banks` (Kaldi) and `torchaudio.functional.melscale_fbanks`
(HTK). Both are computed here in float64 on the device, so that their edges can move from batch to batch
without a copy or a synchronisation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cpprune.audio.config import MelSpec

BANDS = 16  # parts that a filter bank is cut into


def mel_scale(frequency: Tensor) -> Tensor:
    """Hz → mel, by the formula of HTK and Kaldi: 1127 · ln(1 + f/700)."""
    return 1127.0 * torch.log1p(frequency / 700.0)


def hertz(mel: Tensor) -> Tensor:
    """Mel → Hz, the inverse of `mel_scale`."""
    return 700.0 * torch.expm1(mel / 1127.0)


def band_edges_mel(spec: MelSpec, ends: Tensor) -> Tensor:
    """Return F + 2 filter edges in mel, float64, from both ends [2] in Hz; filter i spans i to i + 2."""
    low, high = mel_scale(ends.double()).unbind()
    steps = torch.arange(spec.n_mels + 2, dtype=torch.float64, device=ends.device)
    return low + steps * (high - low) / (spec.n_mels + 1)


def frequencies(spec: MelSpec) -> Tensor:
    """Return the frequencies [K] of the Fourier transform, float64: in mel for Kaldi, else in Hz."""
    bins = torch.arange(spec.n_fft // 2 + 1, dtype=torch.float64)
    hz = bins * (spec.sample_rate / spec.n_fft)
    return mel_scale(hz) if spec.mel == "kaldi" else hz


def filter_bank(spec: MelSpec, ends: Tensor, grid: Tensor) -> Tensor:
    """Return the mel filter bank [F, K] in float32, K = n_fft/2 + 1.

    Args:
        spec: the front end's numbers.
        ends: lower and upper edge in Hz, [2], on the device where the bank is wanted.
        grid: the result of `frequencies`, likewise.
    """
    edges = band_edges_mel(spec, ends)
    if spec.mel != "kaldi":  # triangles over Hz, not over mel
        edges = hertz(edges)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    up = (grid - left) / (centre - left)
    down = (right - grid) / (right - centre)
    bank = torch.minimum(up, down).clamp(min=0)
    if spec.mel == "kaldi":
        bank[:, -1].zero_()  # Kaldi's bank ends before the Nyquist frequency
    return bank.float()


def bands(spec: MelSpec, number: int = BANDS) -> list[tuple[slice, slice]]:
    """Return blocks that hold every non-zero value of the filter bank [F, K], for all its band edges.

    Multiplying block by block skips most of the zeros: a twelfth of the products remain for 256 filters
    over 1,025 frequencies.

    Returns:
        Filters (rows) and frequencies (columns) of each block.
    """
    nyquist, jitter = spec.sample_rate / 2, max(spec.fmin_jitter - 1, 0)
    ends = [(0.0, nyquist - spec.fmax_jitter), (float(jitter), nyquist)]
    edges = [band_edges_mel(spec, torch.tensor(pair)) for pair in ends]
    low, high = (hertz(mel) for mel in edges)
    width, last = spec.sample_rate / spec.n_fft, spec.n_fft // 2 + 1
    size = -(-spec.n_mels // number)
    parts = []
    for begin in range(0, spec.n_mels, size):
        end = min(begin + size, spec.n_mels)
        first = max(math.floor(float(low[begin]) / width), 0)
        stop = min(math.ceil(float(high[end + 1]) / width) + 1, last)
        parts.append((slice(begin, end), slice(first, stop)))
    return parts
