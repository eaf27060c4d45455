"""Pictures and sounds as data URIs."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

# From dark to light; monotonic in lightness, so that it survives printing in grey.
RAMP = ((5, 6, 26), (64, 20, 92), (145, 42, 100), (213, 82, 70), (248, 152, 56), (252, 232, 150))

AUDIO_RATE = 16_000
AUDIO_SECONDS = 2.0


def png(values_HW: NDArray[np.floating]) -> str:
    """[H, W] → a PNG of H × W pixels, from dark (lowest value) to light."""
    values = np.asarray(values_HW, np.float64)
    span = float(values.max() - values.min()) or 1.0
    shades = np.round((values - values.min()) / span * 255).astype(np.uint8)
    height, width = shades.shape
    rows = np.concatenate((np.zeros((height, 1), np.uint8), shades), axis=1)  # filter 0 a row
    anchors = np.linspace(0, 255, len(RAMP))
    palette = np.stack([np.interp(np.arange(256), anchors, c) for c in zip(*RAMP, strict=True)], 1)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.round().astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return _uri("image/png", b"\x89PNG\r\n\x1a\n" + body)


def wav(samples_T: NDArray[np.int16], rate: int) -> str:
    """[T] → a 16-bit WAV of at most `AUDIO_SECONDS`, at no more than `AUDIO_RATE` samples a second."""
    import soundfile
    import soxr

    part = samples_T[: int(AUDIO_SECONDS * rate)]
    if rate > AUDIO_RATE:
        part, rate = soxr.resample(part, rate, AUDIO_RATE), AUDIO_RATE
    file = io.BytesIO()
    soundfile.write(file, part, rate, subtype="PCM_16", format="WAV")
    return _uri("audio/wav", file.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
