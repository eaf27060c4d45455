"""Loading an audio file as mono int16 samples at a given rate."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.audio.decode import opened
from shards.audio.file_range import AudioFile
from shards.audio.sound import BadFile, Wave

Clips = NDArray[np.int16]

__all__ = [
    "BadFile",
    "Clips",
    "Heard",
    "Recording",
    "blocks",
    "load",
    "measure",
    "output_length",
    "quantise",
]


@dataclass(frozen=True)
class Recording:
    """Decoded samples of a file, or of a part of it.

    Attributes:
        samples: int16 [samples], mono.
        clipped: number of samples beyond full scale, which were clipped to it.
    """

    samples: Clips
    clipped: int

    @property
    def silent(self) -> bool:
        """Whether all samples are 0."""
        return not self.samples.any()


@dataclass
class Heard:
    """Sample counts of a recording that is decoded part by part.

    Attributes:
        samples: number of samples.
        clipped: number of samples beyond full scale.
    """

    samples: int = 0
    clipped: int = 0

    def add(self, part: Recording) -> None:
        """Counts one more part."""
        self.samples += len(part.samples)
        self.clipped += part.clipped


def output_length(frames: int, rate: int, sample_rate: int) -> int:
    """Returns the number of samples of `frames` at `rate` Hz, resampled to `sample_rate` Hz."""
    return (2 * frames * sample_rate + rate) // (2 * rate)


def measure(file: AudioFile, sample_rate: int) -> int:
    """Returns the length of a file in samples at `sample_rate`.

    The length in the header is used where the file confirms it; otherwise the file is decoded.

    Raises:
        BadFile: the file is not audio, is truncated, or is empty.
    """
    with opened(file) as sound:
        _check_rate(sound.rate)
        frames = sound.frames
        if frames is None:
            frames = sum(len(block) for block in sound.blocks)
        return output_length(_some(frames), sound.rate, sample_rate)


def load(file: AudioFile, sample_rate: int) -> Recording:
    """Decodes a file to mono at `sample_rate`: the mean of the channels, resampled.

    Raises:
        BadFile: the file cannot be decoded to its end, is empty, or has non-finite samples.
    """
    # A growing buffer, so that a long recording is never in memory twice.
    data = bytearray()
    clipped = 0
    for block in blocks(file, sample_rate):
        data += block.samples.data
        clipped += block.clipped
    return Recording(np.frombuffer(data, dtype=np.int16), clipped)


def blocks(file: AudioFile, sample_rate: int) -> Iterator[Recording]:
    """Yields the samples that `load` returns in blocks, in memory that does not grow with the file.

    Raises:
        BadFile: see `load`; the blocks yielded before are then invalid too.
    """
    import soxr

    with opened(file) as sound:
        _check_rate(sound.rate)
        resampler = None
        if sound.rate != sample_rate:
            try:
                resampler = soxr.ResampleStream(sound.rate, sample_rate, 1, "float32", "HQ")
            except (RuntimeError, ValueError) as error:
                raise BadFile(f"a sample rate of {sound.rate} Hz: {error}") from error
        heard = made = 0
        for block in sound.blocks:
            wave = _mono(block)
            if not np.isfinite(wave).all():
                raise BadFile("samples that are not finite")
            heard += len(wave)
            if resampler is not None:
                wave = resampler.resample_chunk(wave)
                if not np.isfinite(wave).all():
                    raise BadFile("samples too large to resample")
            made += len(wave)
            yield _quantised(wave)
        if sound.frames is not None and heard != sound.frames:
            raise BadFile(f"cut short or damaged: {heard} of {sound.frames} samples can be decoded")
        _some(heard)
        if resampler is not None:
            rest = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
            missing = output_length(heard, sound.rate, sample_rate) - made
            rest = rest[:missing]
            yield _quantised(np.pad(rest, (0, missing - len(rest))))


def quantise(wave: Wave) -> Clips:
    """Returns float samples in [-1, 1) as int16: round(clip(32768 x))."""
    return _quantised(wave).samples


def _quantised(wave: Wave) -> Recording:
    with np.errstate(over="ignore"):
        scaled = wave * np.float32(32768)
    clipped = int(np.count_nonzero(np.abs(scaled) > 32768))
    np.rint(scaled, out=scaled)
    np.clip(scaled, -32768, 32767, out=scaled)
    return Recording(scaled.astype(np.int16), clipped)


def _mono(block_TC: Wave) -> Wave:
    if block_TC.shape[1] == 1:
        return block_TC[:, 0]
    with np.errstate(invalid="ignore", over="ignore"):  # reported as a bad file
        mean: Wave = block_TC.mean(axis=1, dtype=np.float32)
    return mean


def _check_rate(rate: int) -> None:
    # With a damaged header, resampling could otherwise produce terabytes.
    if not 1000 <= rate <= 10_000_000:
        raise BadFile(f"a sample rate of {rate} Hz; 1,000 to 10,000,000 are read")


def _some(frames: int) -> int:
    if frames <= 0:
        raise BadFile("no samples")
    return frames
