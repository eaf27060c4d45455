"""Front ends: waveforms → log-mel spectrograms on the device of the waveforms, and images → [0, 1].

Shapes: B batch, T samples, F mel bins, N frames, K frequencies of the Fourier transform.

The numbers of the presets (`cpprune.audio.config.PRESETS`) and the order of the steps are those of
the systems named there; the filter banks are in `cpprune.audio.filterbank`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.audio.config import MelSpec, preset_spec
from cpprune.audio.filterbank import bands, filter_bank, frequencies
from shards.files.documents import typed

LOG_OFFSET = 1e-5
FULL_SCALE = 32768.0  # of int16 samples
MOST_INPUTS = 1 << 24  # values of a clip or a network's input: more is a mistake
Values = TypeVar("Values", Tensor, float)


class FrontEnd(Protocol):
    """What the rest of cpprune knows of a front end; `LogMel`, `ScaleImage` and DALI's have it.

    Callers ask for these instead of a class: `features.spec is None` where a network sees images,
    `features.compiled()` for training with torch.compile, `features.sample_rate`,
    `features.min_samples`, `features.output_shape(clip_shape)` and `features.silence` for all else.
    Front ends are torch modules without parameters.
    """

    @property
    def spec(self) -> MelSpec | None:
        """Every number that defines it; None for images."""

    @property
    def sample_rate(self) -> int | None:
        """Samples per second of its waveforms; None for images."""

    @property
    def min_samples(self) -> int:
        """Fewest samples that a clip may have."""

    @property
    def silence(self) -> float:
        """Value of an output where the input is silent, or black."""

    def output_shape(self, clip_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the network's input, without the batch, for clips of this shape."""

    def compiled(self) -> FrontEnd:
        """Return a form over the same tensors whose kernels torch.compile fuses, or itself."""

    def __call__(self, clips: Tensor, band_edges: Tensor | None = None) -> Tensor:
        """[B, *clip_shape] → x_BCFT [B, *output_shape] float32; see `LogMel.forward`."""


class LogMel(nn.Module):
    """Waveforms → normalised log-mel spectrograms, always in float32.

    int16 samples are read as fractions of full scale, so clips can be used as shards store them.
    """

    eval_bank: Tensor
    grid: Tensor
    hann: Tensor
    cpu_clips = 4  # at once on a CPU, so that intermediate results stay in its cache

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("grid", frequencies(spec), persistent=False)
        bank = filter_bank(spec, torch.tensor([spec.fmin, spec.fmax]), self.grid)
        self.register_buffer("eval_bank", bank, persistent=False)
        hann = torch.hann_window(spec.window, periodic=spec.periodic_window, dtype=torch.float64)
        self.bands = bands(spec)
        margin = spec.n_fft - spec.window  # a shorter window is centred in its transform
        hann = functional.pad(hann, (margin // 2, margin - margin // 2))
        self.register_buffer("hann", hann.float(), persistent=False)

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.spec.sample_rate

    @property
    def min_samples(self) -> int:
        """Fewest samples of a waveform: reflection at its ends takes half a transform."""
        return self.spec.n_fft // 2 + 2

    @property
    def silence(self) -> float:
        """Value of a spectrogram of silence."""
        return self.normalise(math.log(LOG_OFFSET))

    def output_shape(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Return [1, F, N] for waveforms of shape [T]."""
        return 1, self.spec.n_mels, self.spec.frames(clip_shape[0])

    def compiled(self) -> LogMel:
        """Return a front end over the same tensors whose steps are fused by torch.compile.

        Those that it cannot fuse, the Fourier transform and the matrix products, are called as they are.
        """
        twin = copy.copy(self)
        for name in ("bank", "windowed", "squared", "log"):
            setattr(twin, name, torch.compile(getattr(self, name), dynamic=False))
        return twin

    def forward(self, wave_BT: Tensor, band_edges: Tensor | None = None) -> Tensor:
        """[B, T] int16, or float in [−1, 1] → x_BCFT [B, 1, F, N] float32.

        Args:
            wave_BT: waveforms at the front end's sample rate.
            band_edges: [2], lower and upper edge of the filter bank in Hz on the waveforms' device,
                within the range of the spec's jitters; None for those of evaluation.

        Raises:
            ValueError: waveforms of another shape, or too short for one frame.
        """
        if wave_BT.ndim != 2 or wave_BT.shape[1] < self.min_samples:
            raise ValueError(
                f"waveforms of shape {list(wave_BT.shape)}: must be [B, T] with at least "
                f"{self.min_samples} samples"
            )
        if not len(wave_BT):  # a rank may hold no clip of the last batch
            return torch.zeros((0, *self.output_shape(wave_BT.shape[1:])), device=wave_BT.device)
        with torch.autocast(wave_BT.device.type, enabled=False):
            log_mel = self.log_mel(wave_BT, band_edges)
            return self.normalise(log_mel).unsqueeze(1)

    def log_mel(self, wave_BT: Tensor, band_edges: Tensor | None = None) -> Tensor:
        """[B, T] → log-mel spectrogram [B, F, N] before normalisation."""
        bank = self.eval_bank if band_edges is None else self.bank(band_edges)
        at_once = self.cpu_clips if wave_BT.device.type == "cpu" else len(wave_BT)
        parts = [self.filtered(self.power(p), bank) for p in torch.split(wave_BT, at_once)]
        return self.log(parts[0] if len(parts) == 1 else torch.cat(parts))

    def power(self, wave_BT: Tensor) -> Tensor:
        """[B, T] → power spectrogram [B, N, K] of the pre-emphasised waveform."""
        return self.squared(torch.view_as_real(torch.fft.rfft(self.windowed(wave_BT))))

    # `compiled` fuses the four methods below; the FFT and the matrix products stay outside of them.

    def bank(self, band_edges: Tensor) -> Tensor:
        """[2] in Hz → filter bank [F, K]."""
        return filter_bank(self.spec, band_edges, self.grid)

    def windowed(self, wave_BT: Tensor) -> Tensor:
        """[B, T] → pre-emphasised frames under the window [B, N, n_fft].

        As torch.stft(center=True, pad_mode="reflect") makes them, but frame by frame in memory, so that
        the filter bank is one matrix product over all frames of the batch.
        """
        spec = self.spec
        wave = wave_BT.float()
        if wave_BT.dtype == torch.int16:
            wave = wave / FULL_SCALE
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
        """[B, N, K] → mel spectrogram [B, N, F], through the non-zero blocks of the bank.

        On a GPU one product with the whole bank is faster than many narrow ones.
        """
        if power_BNK.is_cuda:
            return power_BNK @ bank_FK.T
        return torch.cat([power_BNK[..., k] @ bank_FK[f, k].T for f, k in self.bands], dim=2)

    def normalise(self, log_mel: Values) -> Values:
        """Shift and scale to about [−1, 1], as the networks of these presets expect."""
        return (log_mel + 4.5) / 5.0 if self.spec.normalise else log_mel


class ScaleImage(nn.Module):
    """uint8 images → [0, 1] in float32; the front end of image datasets."""

    spec = None
    sample_rate = None
    min_samples = 1
    silence = 0.0

    def output_shape(self, clip_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the images: it is not changed."""
        return tuple(clip_shape)

    def compiled(self) -> ScaleImage:
        """Return itself: there is nothing to fuse."""
        return self

    def forward(self, image: Tensor, band_edges: Tensor | None = None) -> Tensor:
        """[B, 1, H, W] uint8 → [B, 1, H, W] float32 in [0, 1]; floats pass unchanged."""
        return image.float() / 255.0 if image.dtype == torch.uint8 else image.float()


def build_features(spec: MelSpec | None) -> LogMel | ScaleImage:
    """Return the front end of a spec, or the one for images if there is none."""
    return ScaleImage() if spec is None else LogMel(spec)


def log_mel(preset: str = "cpjku22_256") -> LogMel:
    """Return the log-mel front end of a preset; see `cpprune.audio.config.PRESETS`.

    Raises:
        ValueError: no such preset.
    """
    return LogMel(preset_spec(preset))


def spec_to_json(spec: MelSpec | None) -> dict[str, object] | None:
    """Return the spec as it stands in `model.json`."""
    return None if spec is None else asdict(spec)


def spec_from_json(data: dict[str, object] | None) -> MelSpec | None:
    """Return the spec written by `spec_to_json`.

    Raises:
        ValueError: it is not a spec; the message names the number.
    """
    if data is None:
        return None
    unknown = sorted(data.keys() - MelSpec.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"features.{unknown[0]}: a front end has no such number")
    return typed(data, MelSpec)


def check_size(spec: MelSpec | None, clip_shape: Sequence[int]) -> None:
    """Raise ValueError if a clip, or the network's input for it, has more values than any real one."""
    inputs = math.prod(clip_shape)
    if spec is not None:
        inputs = spec.n_mels * spec.frames(clip_shape[0])
    if max(inputs, math.prod(clip_shape)) > MOST_INPUTS:
        raise ValueError(
            f"a clip of shape {list(clip_shape)}: neither it nor the network's input may have more than "
            f"{MOST_INPUTS:,} values"
        )
