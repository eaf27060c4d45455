"""Settings of the front end and of augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from cpprune.settings.choices import check_choices, wrong_choice
from cpprune.settings.renamed import current_value

MOST_BANK = 1 << 24  # values of a filter bank


@dataclass(frozen=True, kw_only=True)
class MelSpec:
    """Every number that defines a log-mel front end. A model carries its own."""

    sample_rate: int = 32_000
    window: int = 2048
    hop: int = 744
    n_fft: int = 2048
    n_mels: int = 256
    fmin_jitter: int = 10
    fmax_jitter: int = 1000
    pre_emphasis: float = 0.97
    mel: str = "kaldi"
    periodic_window: bool = False
    normalise: bool = True

    def __post_init__(self) -> None:
        for name in ("sample_rate", "window", "hop", "n_fft", "n_mels"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"features.{name}={getattr(self, name)}: must be at least 1")
        if self.window > self.n_fft or self.n_fft % 2:
            raise ValueError(
                f"features.n_fft={self.n_fft}: must be even and at least features.window"
                f"={self.window}"
            )
        edges = {"fmin_jitter": self.fmin_jitter, "fmax_jitter": self.fmax_jitter}
        lowest, highest = min(edges, key=edges.__getitem__), max(edges, key=edges.__getitem__)
        wrong = lowest if edges[lowest] < 0 else highest
        if edges[lowest] < 0 or sum(edges.values()) >= self.sample_rate / 2:
            raise ValueError(
                f"features.{wrong}={edges[wrong]}: must be at least 0, and both jitters together less "
                f"than half the sample rate, {self.sample_rate // 2}"
            )
        if not math.isfinite(self.pre_emphasis):
            raise ValueError(f"features.pre_emphasis={self.pre_emphasis}: must be a finite number")
        if self.n_mels * self.n_fft > MOST_BANK or self.sample_rate > MOST_BANK:
            raise ValueError(
                f"features.n_mels={self.n_mels}, features.n_fft={self.n_fft}: their product, and the "
                f"sample rate, must not be above {MOST_BANK:,}"
            )
        if self.mel not in ("kaldi", "htk"):
            raise ValueError(f"features.mel={self.mel!r}: must be kaldi or htk")

    @property
    def fmin(self) -> float:
        """Lower edge of the filter bank in evaluation, in Hz."""
        return 0.0

    @property
    def fmax(self) -> float:
        """Upper edge of the filter bank in evaluation, in Hz."""
        return self.sample_rate / 2 - self.fmax_jitter / 2

    def frames(self, samples: int) -> int:
        """Return N, the number of frames of a waveform of this many samples."""
        return 1 + (samples - bool(self.pre_emphasis)) // self.hop


PRESETS: dict[str, MelSpec] = {
    # CP-JKU submission to DCASE 2022 task 1
    "cpjku22_256": MelSpec(),
    # PaSST (Koutini et al., Interspeech 2022), the teacher of that submission
    "passt_128": MelSpec(window=800, hop=320, n_fft=1024, n_mels=128),
    # DCASE 2024 task 1 baseline: torchaudio.transforms.MelSpectrogram
    "dcase24": MelSpec(
        window=3072,
        hop=500,
        n_fft=4096,
        fmin_jitter=0,
        fmax_jitter=0,
        pre_emphasis=0.0,
        mel="htk",
        periodic_window=True,
        normalise=False,
    ),
    # CP-JKU submission to DCASE 2023 task 1, student
    "cpjku23": MelSpec(window=3072, hop=500, n_fft=4096),
}
IMAGE = "image"  # no front end


def preset_spec(preset: str) -> MelSpec:
    """Return the numbers of a front end by its name.

    Raises:
        ValueError: no such preset.
    """
    preset = current_value("features.preset", preset)
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


@dataclass(kw_only=True)
class FeaturesConfig:
    """The front end, which turns clips into the network's input."""

    preset: str = "cpjku22_256"
    """log-mel front end: cpjku22_256, passt_128, dcase24 or cpjku23; image for uint8 images, which need
    none. The keys below replace single numbers of it"""
    backend: Literal["torch", "dali"] = "torch"
    """what computes spectrograms in training: torch, or dali (NVIDIA DALI, installed separately)"""
    sample_rate: int | None = None
    """samples per second, the same as the dataset's (default: the preset's)"""
    window: int | None = None
    """window length in samples (default: the preset's)"""
    hop: int | None = None
    """samples from one frame to the next (default: the preset's)"""
    n_fft: int | None = None
    """length of the Fourier transform in samples, even (default: the preset's)"""
    n_mels: int | None = None
    """number of mel bins (default: the preset's)"""
    fmin_jitter: int | None = None
    """width in Hz of the range, from 0 up, that the lower band edge is sampled from once per training
    batch (default: the preset's)"""
    fmax_jitter: int | None = None
    """width in Hz of the range that the upper band edge is sampled from once per training batch
    (default: the preset's)"""

    def __post_init__(self) -> None:
        self.preset = current_value("features.preset", self.preset)
        if self.preset not in (*PRESETS, IMAGE):
            raise ValueError(wrong_choice("features.preset", self.preset, (*PRESETS, IMAGE)))
        check_choices(self, "features")
        self.spec()

    def spec(self) -> MelSpec | None:
        """Return the front end's numbers: the preset's, with what is set here in their place."""
        if self.preset == IMAGE:
            return None
        changes = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("preset", "backend") and getattr(self, f.name) is not None
        }
        return replace(PRESETS[self.preset], **changes)


@dataclass(kw_only=True)
class AugmentConfig:
    """Augmentation of training clips."""

    mixstyle_p: float = 0.3
    """Freq-MixStyle: probability that a batch is mixed, from 0 (off) to 1"""
    mixstyle_alpha: float = 0.3
    """Freq-MixStyle: λ is sampled from Beta(alpha, alpha)"""
    mixup_alpha: float = 0.0
    """mixup: λ is sampled from Beta(alpha, alpha); 0 is off"""
    roll: int = 0
    """largest circular shift of the waveform in samples, to either side; 0 is off"""
    freq_mask: int = 0
    """SpecAugment: widest mask in mel bins; 0 is off"""
    time_mask: int = 0
    """SpecAugment: widest mask in frames; 0 is off"""
    mask_first: bool = False
    """mask before Freq-MixStyle and mixup, as the DCASE baselines do, instead of after them"""
    impulse_responses: str | None = None
    """folder of WAV files, such as MicIRP's: impulse responses of microphones that clips are convolved
    with, before the roll (default: none). They are resampled to the clips' rate but not scaled, and the
    result is cut to the clip's length, as in CP-JKU's submission to DCASE 2023"""
    impulse_response_p: float = 0.4
    """probability that a clip is convolved with one of the impulse responses, from 0 to 1"""
    impulse_response_devices: list[str] | None = None
    """recording devices whose clips are convolved, such as [a] (default: all)"""
    band_jitter: bool = True
    """move the edges of the filter bank from batch to batch, by features.fmin_jitter and
    features.fmax_jitter"""

    def __post_init__(self) -> None:
        if not all(math.isfinite(alpha) for alpha in (self.mixstyle_alpha, self.mixup_alpha)):
            raise ValueError("augment.mixstyle_alpha and augment.mixup_alpha must be finite")
        if not 0 <= self.mixstyle_p <= 1:
            raise ValueError(f"augment.mixstyle_p={self.mixstyle_p}: must be from 0 to 1")
        if not 0 <= self.impulse_response_p <= 1:
            raise ValueError(
                f"augment.impulse_response_p={self.impulse_response_p}: must be from 0 to 1"
            )
        if self.impulse_response_devices is not None and self.impulse_responses is None:
            raise ValueError(
                f"augment.impulse_response_devices={self.impulse_response_devices}: there are no "
                "impulse responses to convolve with; set augment.impulse_responses, or leave it out"
            )
        if self.mixstyle_p and self.mixstyle_alpha <= 0:
            raise ValueError(f"augment.mixstyle_alpha={self.mixstyle_alpha}: must be above 0")
        for name in ("mixup_alpha", "roll", "freq_mask", "time_mask"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name}={getattr(self, name)}: must not be negative")
