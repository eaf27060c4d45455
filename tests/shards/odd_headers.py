"""Files of sound whose headers are damaged, odd, or say too little."""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float64]


class Case(NamedTuple):
    """A file that was written, and the sound that went into it."""

    format: str
    subtype: str
    rate: int
    data: bytes
    wave: Wave

    @property
    def name(self) -> str:
        return f"{self.format} {self.subtype} {len(self.wave) / self.rate:g} s at {self.rate} Hz"


def size_of(kind: str, data: bytes, value: int) -> bytes | None:
    """Returns a file whose header states another length of its samples."""
    places = {
        "WAV": (b"data", 4, "<I"),
        "WAVEX": (b"data", 4, "<I"),
        "AIFF": (b"SSND", 4, ">I"),
        "AU": (b".snd", 8, ">I"),
        "CAF": (b"data", 4, ">q"),
        "W64": (b"data\xf3\xac\xd3\x11", 16, "<q"),
        "RF64": (b"ds64", 16, "<q"),
    }
    if kind not in places:
        return None
    mark, skip, form = places[kind]
    at = data.index(mark) + skip
    if form.endswith("q") and value == 0xFFFFFFFF:
        value = -1
    return (
        data[:at]
        + struct.pack(form.upper() if value >= 0 else form, value)
        + data[at + struct.calcsize(form) :]
    )


def id3(size: int) -> bytes:
    return (
        b"ID3\x04\x00\x00"
        + bytes((size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127))
        + bytes(size)
    )


Mutation = Callable[[Case], bytes | None]


def odd_headers() -> dict[str, tuple[Mutation, bool | None]]:
    """Name to (what is done to a file, whether it then has to be read in full)."""
    noise = np.random.default_rng(1).bytes(5000)

    def wav(change: Callable[[bytes], bytes]) -> Mutation:
        return lambda case: change(case.data) if case.format in ("WAV", "WAVEX") else None

    def before_data(chunk: bytes) -> Callable[[bytes], bytes]:
        def insert(data: bytes) -> bytes:
            at = data.index(b"data")
            return data[:at] + chunk + data[at:]

        return insert

    def riff_size(value: int) -> Callable[[bytes], bytes]:
        return lambda data: data[:4] + struct.pack("<I", value) + data[8:]

    def only(kind: str, change: Callable[[bytes], bytes]) -> Mutation:
        return lambda case: change(case.data) if case.format == kind else None

    return {
        "length 0": (lambda case: size_of(case.format, case.data, 0), None),
        "length unknown": (lambda case: size_of(case.format, case.data, 0xFFFFFFFF), None),
        "length of 31 bits": (
            lambda case: (
                size_of(case.format, case.data, 0x7FFFF000)
                if case.format in ("WAV", "WAVEX", "AIFF", "AU")
                else None
            ),
            None,
        ),
        "RIFF size 0": (wav(riff_size(0)), True),
        "RIFF size unknown": (wav(riff_size(0xFFFFFFFF)), True),
        "RIFF size too small": (wav(riff_size(100)), True),
        "RIFF size too large": (wav(riff_size(123456789)), True),
        "odd chunk": (wav(before_data(b"LIST" + struct.pack("<I", 3) + b"abc\0")), True),
        "odd chunk not filled up": (
            wav(before_data(b"note" + struct.pack("<I", 3) + b"abc")),
            None,
        ),
        "chunk that never ends": (wav(before_data(b"note" + struct.pack("<I", 1 << 30))), None),
        "junk behind": (lambda case: case.data + noise, None),
        "zeros behind": (lambda case: case.data + bytes(3000), None),
        "text behind": (lambda case: case.data + b"TAG" + b"a" * 125, None),
        "ID3 before": (lambda case: id3(1000) + case.data, None),
        "ID3 before MP3": (only("MP3", lambda data: id3(1000) + data), True),
        "FLAC of unknown length": (only("FLAC", unknown_flac), True),
        "twice": (lambda case: case.data + case.data, None),
    }


def unknown_flac(data: bytes) -> bytes:
    """Returns a FLAC as it is written to a pipe: neither length nor checksum of its samples."""
    assert data[:4] == b"fLaC"
    return data[:21] + bytes((data[21] & 0xF0,)) + bytes(4 + 16) + data[42:]
