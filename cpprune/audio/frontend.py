"""Log-mel spectrograms on the device of the waveform.

Shapes: B batch, T samples, F mel bins, N frames, K frequencies of the Fourier transform.

The numbers of the presets (`cpprune.audio.config.PRESETS`) and the order of the steps are those of
the front ends named there; the Kaldi filter bank is `torchaudio.compliance.kaldi.get_mel_banks`, the
HTK one `torchaudio.functional.melscale_fbanks`, both computed here in float64 on the device, so that
their edges can move from batch to batch without a copy or a synchronisation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.audio.config import MelSpec
from shards.files.documents import typed

LOG_OFFSET = 1e-5
MOST_INPUTS = 1 << 24  # values of a clip: more is no audio clip, but a mistake
BANDS = 16  # into which the filter bank is cut
Values = TypeVar("Values", Tensor, float)


def mel_scale(hertz: Tensor) -> Tensor:
    """Hz → mel, HTK's and Kaldi's formula: 1127 · ln(1 + f/700)."""
    return 1127.0 * torch.log1p(hertz / 700.0)


def band_edges_mel(spec: MelSpec, fmin: Tensor, fmax: Tensor) -> Tensor:
    """Return the F + 2 edges of the filters in mel, float64; filter i reaches from edge i to i + 2."""
    low, high = mel_scale(fmin.double()), mel_scale(fmax.double())
    steps = torch.arange(spec.n_mels + 2, dtype=torch.float64, device=fmin.device)
    return low + steps * (high - low) / (spec.n_mels + 1)


def filter_bank(spec: MelSpec, fmin: Tensor, fmax: Tensor) -> Tensor:
    """Return the mel filter bank [F, K] in float32, K = n_fft/2 + 1.

    Args:
        spec: the front end's numbers.
        fmin: lower edge in Hz, a 0-dimensional tensor on the device where the bank is wanted.
        fmax: upper edge in Hz, likewise.
    """
    edges = band_edges_mel(spec, fmin, fmax)
    bins = torch.arange(spec.n_fft // 2 + 1, dtype=torch.float64, device=fmin.device)
    grid = bins * (spec.sample_rate / spec.n_fft)
    if spec.mel == "kaldi":  # triangles over mel
        grid = mel_scale(grid)
    else:  # triangles over Hz
        edges = 700.0 * torch.expm1(edges / 1127.0)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    up = (grid - left) / (centre - left)
    down = (right - grid) / (right - centre)
    bank = torch.minimum(up, down).clamp(min=0)
    if spec.mel == "kaldi":
        bank[:, -1].zero_()  # Kaldi's bank ends before the Nyquist frequency
    return bank.float()


def bands(spec: MelSpec, number: int = BANDS) -> list[tuple[slice, slice]]:
    """Cut the filter bank [F, K] into parts outside of which it is zero, wherever its edges move to.

    Multiplying part by part leaves out nearly all of the zeros: a twelfth of the products remain
    for 256 filters over 1,025 frequencies.

    Returns:
        Filters (rows) and frequencies (columns) of each part.
    """
    nyquist, jitter = spec.sample_rate / 2, max(spec.fmin_jitter - 1, 0)
    ends = [(0.0, nyquist - spec.fmax_jitter), (float(jitter), nyquist)]
    edges = [band_edges_mel(spec, torch.tensor(a), torch.tensor(b)) for a, b in ends]
    low, high = (700.0 * torch.expm1(mel / 1127.0) for mel in edges)
    width, last = spec.sample_rate / spec.n_fft, spec.n_fft // 2 + 1
    size = -(-spec.n_mels // number)
    parts = []
    for begin in range(0, spec.n_mels, size):
        end = min(begin + size, spec.n_mels)
        first = max(math.floor(float(low[begin]) / width), 0)
        stop = min(math.ceil(float(high[end + 1]) / width) + 1, last)
        parts.append((slice(begin, end), slice(first, stop)))
    return parts


class LogMel(nn.Module):
    """Waveforms → normalised log-mel spectrograms, always in float32.

    int16 samples are read as fractions of full scale, so audio comes straight from its shards.
    """

    eval_bank: Tensor
    hann: Tensor
    cpu_clips = 4  # at once on a CPU, so that what lies between the steps stays in its cache

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        bank = filter_bank(spec, torch.tensor(spec.fmin), torch.tensor(spec.fmax))
        self.register_buffer("eval_bank", bank, persistent=False)
        hann = torch.hann_window(spec.window, periodic=spec.periodic_window, dtype=torch.float64)
        self.bands = bands(spec)
        margin = spec.n_fft - spec.window  # a shorter window stands in the middle of its transform
        hann = functional.pad(hann, (margin // 2, margin - margin // 2))
        self.register_buffer("hann", hann.float(), persistent=False)

    def output_shape(self, samples: int) -> tuple[int, int, int]:
        """Return [1, F, N] for waveforms of this many samples."""
        return 1, self.spec.n_mels, self.spec.frames(samples)

    def forward(self, wave_BT: Tensor, band_edges: Tensor | None = None) -> Tensor:
        """[B, T] int16, or float in [−1, 1] → x_BCFT [B, 1, F, N] float32.

        Args:
            wave_BT: waveforms at the front end's sample rate.
            band_edges: lower and upper edge of the filter bank in Hz, a tensor of two on the
                waveforms' device, within the range of the spec's jitters; None for those of evaluation.

        Raises:
            ValueError: waveforms of another shape, or too short for one frame.
        """
        if wave_BT.ndim != 2 or wave_BT.shape[1] <= self.spec.n_fft // 2 + 1:
            raise ValueError(
                f"waveforms of shape {list(wave_BT.shape)}: must be [B, T] with more than "
                f"{self.spec.n_fft // 2 + 1} samples"
            )
        if not len(wave_BT):  # a rank may hold no clip of the last batch
            return torch.zeros((0, *self.output_shape(wave_BT.shape[1])), device=wave_BT.device)
        with torch.autocast(wave_BT.device.type, enabled=False):
            log_mel = self.log_mel(wave_BT, band_edges)
            return self.normalise(log_mel).unsqueeze(1)

    def log_mel(self, wave_BT: Tensor, band_edges: Tensor | None = None) -> Tensor:
        """[B, T] → log-mel spectrogram [B, F, N] before normalisation."""
        bank = self.eval_bank if band_edges is None else self.bank(band_edges)
        at_once = self.cpu_clips if wave_BT.device.type == "cpu" else len(wave_BT)
        parts = torch.split(wave_BT, at_once)
        return self.log(torch.cat([self.filtered(self.power(part), bank) for part in parts]))

    def power(self, wave_BT: Tensor) -> Tensor:
        """[B, T] → power spectrogram [B, N, K] of the pre-emphasised waveform."""
        return self.squared(torch.view_as_real(torch.fft.rfft(self.windowed(wave_BT))))

    # What lies between the Fourier transform and the matrix products, for `compiled` to fuse.

    def bank(self, band_edges: Tensor) -> Tensor:
        """[2] in Hz → filter bank [F, K]."""
        return filter_bank(self.spec, band_edges[0], band_edges[1])

    def windowed(self, wave_BT: Tensor) -> Tensor:
        """[B, T] → pre-emphasised frames under the window [B, N, n_fft].

        The same as torch.stft(center=True, pad_mode="reflect"), laid out frame by frame, so that the
        filter bank is one matrix product over all frames of the batch.
        """
        spec = self.spec
        wave = wave_BT.float()
        if wave_BT.dtype == torch.int16:
            wave = wave / 32768.0
        if spec.pre_emphasis:
            wave = wave[:, 1:] - spec.pre_emphasis * wave[:, :-1]
        half = spec.n_fft // 2
        padded = functional.pad(wave.unsqueeze(1), (half, half), mode="reflect").squeeze(1)
        return padded.unfold(1, spec.n_fft, spec.hop) * self.hann

    def squared(self, spectrum_BNK2: Tensor) -> Tensor:
        """Real and imaginary parts [B, N, K, 2] → power [B, N, K]."""
        real, imaginary = spectrum_BNK2.unbind(-1)
        return real.square().addcmul_(imaginary, imaginary)

    def log(self, mel_BNF: Tensor) -> Tensor:
        """[B, N, F] → log-mel [B, F, N]."""
        return torch.log(mel_BNF.transpose(1, 2).contiguous() + LOG_OFFSET)

    def filtered(self, power_BNK: Tensor, bank_FK: Tensor) -> Tensor:
        """[B, N, K] → mel spectrogram [B, N, F], through the parts of the bank that are not zero.

        On a GPU one product with the whole bank is faster than many narrow ones.
        """
        if power_BNK.is_cuda:
            return power_BNK @ bank_FK.T
        return torch.cat([power_BNK[..., k] @ bank_FK[f, k].T for f, k in self.bands], dim=2)

    def normalise(self, log_mel: Values) -> Values:
        """Shift and scale to about [−1, 1], as the networks of these presets expect."""
        return (log_mel + 4.5) / 5.0 if self.spec.normalise else log_mel


def compiled(features: LogMel) -> LogMel:
    """Return a front end over the same tensors whose steps are fused by torch.compile.

    Those that it cannot take, the Fourier transform and the matrix products, are called as they are.
    """
    twin = copy.copy(features)
    for name in ("bank", "windowed", "squared", "log"):
        setattr(twin, name, torch.compile(getattr(features, name), dynamic=False))
    return twin


class ScaleImage(nn.Module):
    """uint8 images → [0, 1] in float32; the front end of image datasets."""

    def forward(self, image: Tensor, band_edges: Tensor | None = None) -> Tensor:
        """[B, 1, H, W] uint8 → [B, 1, H, W] float32 in [0, 1]; floats pass unchanged."""
        return image.float() / 255.0 if image.dtype == torch.uint8 else image.float()


def build_features(spec: MelSpec | None) -> LogMel | ScaleImage:
    """Return the front end of this spec, or the one for images where there is none."""
    return ScaleImage() if spec is None else LogMel(spec)


def spec_to_json(spec: MelSpec | None) -> dict[str, Any] | None:
    """Return the spec as it stands in `model.json`."""
    return None if spec is None else asdict(spec)


def spec_from_json(data: dict[str, Any] | None) -> MelSpec | None:
    """Return the spec written by `spec_to_json`.

    Raises:
        ValueError: it is none; the message names the number.
    """
    if data is None:
        return None
    unknown = sorted(data.keys() - MelSpec.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"features.{unknown[0]}: there is no such number of a front end")
    return typed(data, MelSpec)


def check_size(spec: MelSpec | None, clip_shape: Sequence[int]) -> None:
    """Raise ValueError where one clip, or what the network sees of it, is larger than can be meant."""
    inputs = math.prod(clip_shape)
    if spec is not None:
        inputs = spec.n_mels * spec.frames(clip_shape[0])
    if max(inputs, math.prod(clip_shape)) > MOST_INPUTS:
        raise ValueError(
            f"a clip of shape {list(clip_shape)}: it, and what the network sees of it, may have "
            f"{MOST_INPUTS:,} values"
        )
