"""Cutting a recording into clips, and encoding a clip as the bytes in a shard."""

import io
import struct

import numpy as np

from shards.audio.load import Clips

# Fraction of the last clip that the remainder of a longer recording must fill.
MIN_SOUND = 0.5


def count_clips(samples: int, length: int, short: str, min_sound: float) -> int:
    """Returns how many clips of `length` samples are cut from a recording.

    Args:
        samples: of the recording.
        length: of a clip.
        short: "pad" or "drop" remainders shorter than a clip.
        min_sound: with "pad", the fraction of the last clip that the remainder of a longer recording
            must fill; else it is dropped. A recording that is itself shorter than a clip is always
            padded.
    """
    clips, rest = divmod(samples, length)
    padded = short == "pad" and rest > 0 and (clips == 0 or rest >= min_sound * length)
    return clips + padded


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
