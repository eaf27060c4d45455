"""Impulse responses of other microphones: reading them, and convolving clips with them.

Source: Morocutti et al., "Device-Robust Acoustic Scene Classification via Impulse Response
Augmentation", EUSIPCO 2023.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.audio.config import AugmentConfig
from cpprune.audio.frontend import FULL_SCALE
from shards.audio.decode import opened
from shards.audio.sound import BadFile, Wave
from shards.errors import UserError
from shards.manifest import sha256_of
from shards.reader import Dataset

KEY = "augment.impulse_responses"


@dataclass(frozen=True)
class ImpulseResponses:
    """The responses of a folder.

    Attributes:
        waves: [R, N], one a row, padded with zeros, as in their files: not scaled.
        rows: of the dataset's index: which may be convolved; None for all.
        folder: where they are from.
    """

    waves: Tensor
    rows: NDArray[np.bool_] | None
    folder: Path

    def __str__(self) -> str:
        """Return what is said when a run starts."""
        whom = "" if self.rows is None else f", for {int(self.rows.sum()):,} clips of the dataset"
        return f"{self.folder}: {len(self.waves)} impulse responses{whom}"

    def allowed(self, chosen_B: NDArray[np.int64], ids_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the chosen responses, −1 (none) for clips that may not be convolved."""
        return chosen_B if self.rows is None else np.where(self.rows[ids_B], chosen_B, -1)


def response_files(folder: Path) -> list[Path]:
    """Return the WAV files below a folder, sorted by their path in it.

    Raises:
        UserError: there are none.
    """
    if not folder.is_dir():
        raise UserError(f"{KEY}={folder}: no such folder; give one with WAV files")
    found = [path for path in folder.rglob("*") if path.suffix.lower() == ".wav"]
    if not found:
        raise UserError(f"{KEY}={folder}: holds no WAV file")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def contents_hash(folder: Path) -> str:
    """Return a hash of the responses in a folder and of their order, wherever it lies."""
    hashes = []
    for path in response_files(folder):
        try:
            hashes.append(sha256_of(path.read_bytes()))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def load_responses(
    config: AugmentConfig, dataset: Dataset, clip_shape: Sequence[int], sample_rate: int | None
) -> ImpulseResponses | None:
    """Read the impulse responses that the configuration names, at a clip's sample rate.

    What is longer than a clip is cut, which changes no result.

    Args:
        config: names them, and the devices whose clips are convolved.
        dataset: has the device of each clip.
        clip_shape: (samples,).
        sample_rate: of the clips; None for images.

    Raises:
        UserError: a file cannot be read, or is silent; or the clips are images, or have no device.
    """
    if config.impulse_responses is None:
        return None
    if sample_rate is None:
        raise UserError(
            f"{KEY}={config.impulse_responses}: images cannot be convolved; leave it out"
        )
    folder = Path(config.impulse_responses)
    waves = [_read(path, sample_rate, clip_shape[0]) for path in response_files(folder)]
    padded = np.zeros((len(waves), max(map(len, waves))), np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    rows = None
    if config.impulse_response_devices is not None:
        devices = dataset.texts("device")
        rows = np.isin(devices, config.impulse_response_devices)
        for name in config.impulse_response_devices:
            if name not in devices:
                known = ", ".join(sorted(set(devices)))
                raise UserError(
                    f"augment.impulse_response_devices: the dataset has no device {name!r}; it has "
                    f"{known}"
                )
    return ImpulseResponses(torch.from_numpy(padded), rows, folder)


def _read(path: Path, sample_rate: int, samples: int) -> Wave:
    """Return the first samples of a file: the mean of its channels, resampled; float32 [≤ samples]."""
    try:
        with opened(path) as sound:
            if not 1000 <= sound.rate <= 10_000_000:
                raise BadFile(f"a sample rate of {sound.rate} Hz")
            # A little more than is kept, for the resampler's filter at the end.
            needed = (samples * sound.rate) // sample_rate + sound.rate // 10
            blocks, heard = [], 0
            for block in sound.blocks:
                blocks.append(block.mean(axis=1))
                heard += len(block)
                if heard >= needed:
                    break
        wave = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        if not np.isfinite(wave).all():
            raise BadFile("samples that are not finite")
        if sound.rate != sample_rate and len(wave):
            wave = soxr.resample(wave[:needed], sound.rate, sample_rate, quality="HQ")
        wave = wave[:samples]
        if not wave.any():
            raise BadFile("it is empty or silent")
    except BadFile as error:
        raise UserError(f"{path}: cannot be used as an impulse response ({error})") from None
    return wave.astype(np.float32)


def convolved(wave_bT: Tensor, waves_RN: Tensor, chosen_b: Tensor) -> Tensor:
    """Convolve each waveform with its own impulse response, cut to the waveform's length.

    Args:
        wave_bT: int16, or float in [−1, 1].
        waves_RN: the responses, on the same device.
        chosen_b: row of each waveform's response; −1 leaves it as it is.

    Returns:
        float32 [b, T].
    """
    from torchaudio.functional import fftconvolve

    wave = wave_bT / FULL_SCALE if wave_bT.dtype == torch.int16 else wave_bT.float()
    if not len(wave):  # a rank may hold no clip of the last batch
        return wave
    # All of them, whatever was chosen: in a captured step, shapes must not differ.
    through = fftconvolve(wave, waves_RN[chosen_b.clamp_min(0)])[:, : wave.shape[1]]
    return torch.where((chosen_b >= 0)[:, None], through, wave)
