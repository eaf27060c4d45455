"""Counting the frames of an MPEG audio stream (MP3, MP2) by their headers.

The stream has no length field. Decoders trust the length in an optional first frame (Xing, VBRI), or
estimate one from the first frames.
"""

import os
import struct
from dataclasses import dataclass
from typing import NamedTuple

from shards.audio.sound import BadFile

_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)
# Number of consecutive headers that are not considered a coincidence.
_CHAIN = 3


class _Frame(NamedTuple):
    bytes: int
    samples: int
    kind: tuple[int, int, int, bool]


@dataclass(frozen=True)
class Stream:
    """An MPEG audio stream in a file.

    Attributes:
        first: offset of the first audio frame.
        frames: number of audio frames.
        samples: samples per channel of a frame.
        header: offset of the info frame before them, if it states the right number of frames.
    """

    first: int
    frames: int
    samples: int
    header: int | None


def scan(handle: int, at: int, end: int) -> Stream | None:
    """Counts the frames of a stream; returns None if no chain of frames is found.

    Args:
        handle: file descriptor.
        at: offset of the stream, including tags.
        end: offset of its end.

    Raises:
        BadFile: the stream is truncated, or its sample rate or layer changes.
    """
    first = _next(handle, after_tags(handle, at, end), end)
    if first is None:
        return None
    at, count = first, 0
    frame = kind = _frame(os.pread(handle, 4, at))
    while True:
        if frame is not None and kind is not None and frame.kind == kind.kind:
            if at + frame.bytes > end:
                there = end - at
                raise BadFile(
                    f"cut short: {there} of {frame.bytes} bytes of its last frame are there"
                )
            at += frame.bytes
            count += 1
        else:
            skipped = after_tags(handle, at, end)
            found = _next(handle, skipped, end)
            if found is None:
                break
            at = found
            frame = _frame(os.pread(handle, 4, at))
            if frame is None or kind is None or frame.kind != kind.kind:
                raise BadFile("its sample rate or its kind changes; convert it to WAV or FLAC")
            continue
        frame = _frame(os.pread(handle, 4, at))
    assert kind is not None
    stated = _stated(os.pread(handle, 256, first))
    if stated is None:
        return Stream(first, count, kind.samples, None)
    count -= 1
    frames, size = stated
    if count < frames and (size is None or at - first < size):
        raise BadFile(f"cut short: {count} of {frames} frames are there")
    # An info frame that states too few, as in two concatenated streams, is skipped.
    return Stream(first + kind.bytes, count, kind.samples, first if count <= frames else None)


def is_frame(handle: int, at: int) -> bool:
    """Returns whether a frame header is at an offset."""
    return _frame(os.pread(handle, 4, at)) is not None


def _frame(head: bytes) -> _Frame | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    major = 1 if version == 3 else 2
    hertz = _RATES[rate] >> (3 - version if version else 2)
    samples = 384 if layer == 1 else 576 if (major, layer) == (2, 3) else 1152
    slot = 4 if layer == 1 else 1
    size = (samples // 8 * 1000 * _KBITS[major, layer][bits - 1] // hertz // slot + padding) * slot
    mono = head[3] >> 6 == 3
    return _Frame(size, samples, (version, layer, rate, mono))


def _next(handle: int, at: int, end: int) -> int | None:
    """Returns the offset of the next chain of frames, from `at` on."""
    while at < end:
        window = os.pread(handle, min(1 << 16, end - at), at)
        place = window.find(b"\xff")
        while place >= 0:
            if _chained(handle, at + place, end):
                return at + place
            place = window.find(b"\xff", place + 1)
        at += len(window)
        if not window:
            return None
    return None


def _chained(handle: int, at: int, end: int) -> bool:
    kind = _frame(os.pread(handle, 4, at))
    frame = kind
    for _ in range(_CHAIN):
        if frame is None or kind is None or frame.kind != kind.kind:
            return False
        at += frame.bytes
        if at >= end:
            return at == end
        frame = _frame(os.pread(handle, 4, at))
    return True


def after_tags(handle: int, at: int, end: int) -> int:
    """Returns the offset after the ID3 and APE tags at `at`."""
    while at < end:
        head = os.pread(handle, 32, at)
        if head[:3] == b"ID3" and len(head) >= 10:
            size = (
                (head[6] & 127) << 21 | (head[7] & 127) << 14 | (head[8] & 127) << 7 | head[9] & 127
            )
            at += 10 + size + (10 if head[5] & 16 else 0)
        elif head[:3] == b"TAG" and end - at == 128:
            at = end
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            at += 32 + struct.unpack("<I", head[12:16])[0]
        else:
            break
    return at


def _stated(frame: bytes) -> tuple[int, int | None] | None:
    """Returns the (frames, bytes) of an info frame; None for an audio frame."""
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        size, frames = struct.unpack(">II", frame[46:54])
        return frames, size
    for place in (36, 21, 13):
        if frame[place : place + 4] in (b"Xing", b"Info"):
            flags, frames, size = struct.unpack(">III", frame[place + 4 : place + 16])
            if not flags & 1:
                return 0, None
            return frames, size if flags & 2 else None
    return None
