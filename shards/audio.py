"""From an audio file to clips of int16 samples, and from clips to the bytes in a shard."""

import io
import re
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]
Clips = NDArray[np.int16]

BLOCK_FRAMES = 1 << 20
# libsndfile notes a data chunk that is longer than the file: "data : 132300 (should be 66106)".
_CUT_SHORT = re.compile(r"^\s*data\s*:\s*(\d+)\s*\(should be (\d+)\)", re.MULTILINE)
# Programs that write to a pipe cannot know the length and leave one of these.
_UNKNOWN_LENGTHS = range(0x7FFFF000, 0x100000000)


class BadFile(Exception):  # noqa: N818 (it is no error of the program)
    """A source file that cannot be used; the text is the reason, without the file's name."""


def output_length(frames: int, rate: int, sample_rate: int) -> int:
    """Returns how many samples `frames` at `rate` Hz become at `sample_rate` Hz."""
    return (2 * frames * sample_rate + rate) // (2 * rate)


def count_clips(samples: int, length: int, short: str) -> int:
    """Returns how many clips of `length` samples are cut from `samples`.

    With `short` "pad" the rest is padded to a clip of its own, with "drop" it is left out.
    """
    return -(-samples // length) if short == "pad" else samples // length


def measure(file: str | Path, sample_rate: int) -> int:
    """Returns the length of a file in samples at `sample_rate`, from its header alone.

    Raises:
        BadFile: if it is no audio, is cut short, or is empty.
    """
    import soundfile

    try:
        with soundfile.SoundFile(str(file)) as sound:
            _refuse_damage(sound.frames, sound.extra_info)
            return output_length(sound.frames, sound.samplerate, sample_rate)
    except soundfile.LibsndfileError as error:
        raise BadFile(_reason(file, error)) from error


def load(file: str | Path, sample_rate: int) -> Clips:
    """Decodes a file to mono at `sample_rate`: the mean of the channels, resampled once.

    Returns:
        int16 [samples]: round(clip(32768 x)) of the float samples x in [-1, 1).

    Raises:
        BadFile: if it cannot be decoded to its end, is empty, or has samples that are not finite.
    """
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(str(file)) as sound:
            _refuse_damage(sound.frames, sound.extra_info)
            blocks = [
                _mono(block)
                for block in sound.blocks(BLOCK_FRAMES, dtype="float32", always_2d=True)
            ]
            rate, frames, form = sound.samplerate, sound.frames, sound.format
    except soundfile.LibsndfileError as error:
        raise BadFile(_reason(file, error)) from error
    wave = np.concatenate(blocks) if len(blocks) != 1 else blocks[0]
    # The length in the header of an MP3 may be an estimate.
    if len(wave) == 0 or (len(wave) < frames and form != "MP3"):
        raise BadFile(f"only {len(wave)} of {frames} samples can be decoded")
    if not np.isfinite(wave).all():
        raise BadFile("samples that are not finite")
    if rate != sample_rate:
        wanted = output_length(len(wave), rate, sample_rate)
        wave = soxr.resample(wave, rate, sample_rate, quality="HQ")[:wanted]
        wave = np.pad(wave, (0, wanted - len(wave)))
    return quantise(wave)


def quantise(wave: Wave) -> Clips:
    """Returns float samples in [-1, 1) as int16; louder ones are clipped."""
    scaled = wave * np.float32(32768)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -32768, 32767, out=scaled)
    return scaled.astype(np.int16)


def cut(samples: Clips, start: int, length: int) -> Clips:
    """Returns clip number `start` of a recording, zero-padded at its end to `length` samples."""
    clip = samples[start * length : (start + 1) * length]
    return np.pad(clip, (0, length - len(clip))) if len(clip) < length else clip


def wav_header(samples: int, sample_rate: int) -> bytes:
    """Returns the canonical 44-byte header of a mono 16-bit PCM WAV file."""
    size = 2 * samples
    riff = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return riff + form + struct.pack("<4sI", b"data", size)


def encode(clip: Clips, sample_rate: int, encoding: str) -> bytes:
    """Returns the bytes of a clip as a "wav" or "flac" file."""
    if encoding == "wav":
        return wav_header(len(clip), sample_rate) + clip.astype("<i2").tobytes()
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, clip, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _mono(block_TC: Wave) -> Wave:
    if block_TC.shape[1] == 1:
        return block_TC[:, 0].copy()
    with np.errstate(invalid="ignore", over="ignore"):  # reported as a bad file
        mean: Wave = block_TC.mean(axis=1, dtype=np.float32)
    return mean


def _refuse_damage(frames: int, log: str) -> None:
    cut_short = _CUT_SHORT.search(log)
    if cut_short and int(cut_short[1]) not in _UNKNOWN_LENGTHS:
        promised, there = int(cut_short[1]), int(cut_short[2])
        if promised > there > 0:
            raise BadFile(f"cut short: {there} of {promised} bytes of samples are there")
    if frames <= 0:
        raise BadFile("no samples")


def _reason(file: str | Path, error: Exception) -> str:
    if not Path(file).is_file():
        return "no such file"
    if Path(file).stat().st_size == 0:
        return "the file is empty"
    text = str(getattr(error, "error_string", error)).strip().rstrip(".")
    return f"not readable as audio: {text}"
