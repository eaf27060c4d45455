"""Container headers: where a file's samples lie, and how many bytes of them the header declares.

libsndfile reads a truncated file without reporting it. The layouts follow the specification of each
format; only the fields that determine the length are read.
"""

import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from shards.audio.sound import BadFile

# Lengths written by programs whose output is a pipe, so that the length is unknown: the largest 31-bit
# and 32-bit numbers, with or without the size of a header or a block.
_UNKNOWN = (range(0x7FFFF000, 0x80000001), range(0xFFFFF000, 0x100000000))
# WAV format tags whose samples are stored in blocks of the size in the header.
_GSM = 0x31
_IN_BLOCKS = {2, 17, _GSM, 0x38}
_SUN_BLOCKS = {23: 60, 25: 45, 26: 75}


class Piece(NamedTuple):
    """Replacement for the bytes of a file at offset `at`."""

    at: int
    data: bytes


@dataclass(frozen=True)
class Extent:
    """Location of the samples in a file.

    Attributes:
        at: offset of the first sample.
        there: bytes from `at` to the end of the file.
        stated: bytes of samples according to the header; None if the header does not know.
        field: (offset, `struct` format, bytes it counts besides samples) of the length in the header;
            None if libsndfile ignores that length and reads to the end of the file.
        block: bytes of one block of compressed samples.
        block_frames: samples per channel of a block, if libsndfile decodes an odd trailing byte as one
            more block; else 0.
    """

    at: int
    there: int
    stated: int | None
    field: tuple[int, str, int] | None
    block: int = 1
    block_frames: int = 0

    @property
    def _whole(self) -> int:
        size = max(0, self.there if self.stated is None else self.stated)
        return size - size % self.block

    @property
    def frames(self) -> int | None:
        """Samples per channel, if libsndfile would read more than there are; else None."""
        return self._whole // self.block * self.block_frames or None

    def refuse_cut(self) -> None:
        """Checks that the file contains all samples.

        Raises:
            BadFile: the file is truncated.
        """
        if self.stated is not None and self.stated > self.there:
            there = max(0, self.there)
            raise BadFile(f"cut short: {there} of {self.stated} bytes of samples are there")

    def mended(self) -> tuple[int | None, Piece | None]:
        """Returns the corrections with which libsndfile reads exactly the samples.

        Returns:
            Where the file should end, and header bytes to replace; each is None if no correction is
            needed.
        """
        whole = self._whole
        # libsndfile also decodes what follows the blocks, such as a padding byte or the next chunk.
        end = self.at + whole if self.field is None or self.block > 1 else None
        if self.field is None or whole == self.stated:
            return end, None
        place, form, more = self.field
        try:
            return end, Piece(place, struct.pack(form, whole + more))
        except struct.error as error:
            raise BadFile("more samples than its header can state; convert it to FLAC") from error


def extent_of(handle: int, start: int, size: int) -> Extent | None:
    """Returns the extent of a file's samples; None if its header does not determine it.

    Args:
        handle: file descriptor.
        start: offset of the header.
        size: of the file in bytes.
    """
    head = os.pread(handle, 256, start)
    file = _File(handle, start, size)
    try:
        if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
            return _wav(file, head)
        if head[:4] == b"FORM":
            return _iff(file, head)
        if head[:4] == b"riff" and head[24:28] == b"wave":
            return _wave64(file)
        if head[:4] == b"caff":
            return _caf(file)
        if head[:4] in (b".snd", b"dns."):
            return _sun(file, head)
        return _older(file, head)
    except struct.error:  # the header is truncated, which libsndfile reports
        return None


class _File(NamedTuple):
    handle: int
    start: int
    size: int

    def read(self, form: str, at: int) -> tuple[int, ...]:
        return struct.unpack(form, os.pread(self.handle, struct.calcsize(form), at))

    def extent(
        self, at: int, stated: int, field: tuple[int, str, int] | None, block: int = 1
    ) -> Extent:
        known = stated >= 0 and not any(stated in numbers for numbers in _UNKNOWN)
        return Extent(at, self.size - at, stated if known else None, field, block)


class _Chunk(NamedTuple):
    name: bytes
    field: int
    at: int
    size: int


def _chunks(
    file: _File, at: int, id_bytes: int = 4, form: str = "<I", align: int = 2, inside: int = 0
) -> Iterator[_Chunk]:
    """Yields the chunks of a file from `at` on; `inside` is how many header bytes a size includes."""
    head = id_bytes + struct.calcsize(form)
    while at + head <= file.size:
        name = os.pread(file.handle, id_bytes, at)
        (size,) = file.read(form, at + id_bytes)
        body = at + head
        yield _Chunk(name, at + id_bytes, body, size - inside)
        end = body + max(0, size - inside)
        at = end + (file.start - end) % align
        # Some programs omit the padding byte after an odd chunk.
        if at != end < file.size and not _named(os.pread(file.handle, 4, at)):
            at = end if _named(os.pread(file.handle, 4, end)) else at


def _named(name: bytes) -> bool:
    return re.fullmatch(rb"[ -~]{4}", name) is not None


def _wav(file: _File, head: bytes) -> Extent | None:
    order = ">" if head[:4] == b"RIFX" else "<"
    big: int | None = None
    block = tag = 1
    for chunk in _chunks(file, file.start + 12, form=f"{order}I"):
        if chunk.name == b"ds64":
            big = chunk.at + 8
        elif chunk.name == b"fmt ":
            tag, _, _, _, align = file.read(f"{order}HHIIH", chunk.at)
            block = max(1, align) if tag in _IN_BLOCKS else 60 if tag == 0x40 else 1
        elif chunk.name == b"data":
            stated, field = chunk.size, (chunk.field, f"{order}I", 0)
            if big is not None and stated == 0xFFFFFFFF:
                (stated,) = file.read("<q", big)
                field = (big, "<q", 0)
            extent = _streamed(file, file.extent(chunk.at, stated, field, block), f"{order}I")
            return replace(extent, block_frames=320) if tag == _GSM else extent
    return None


def _iff(file: _File, head: bytes) -> Extent | None:
    block, kind = 1, b"NONE"
    for chunk in _chunks(file, file.start + 12, form=">I"):
        if chunk.name == b"COMM" and head[8:12] == b"AIFC":
            (channels,) = file.read(">H", chunk.at)
            kind = os.pread(file.handle, 4, chunk.at + 18)
            block = {b"ima4": 34 * channels, b"GSM ": 33, b"agsm": 33}.get(kind, 1)
        elif chunk.name == b"SSND":
            (offset,) = file.read(">I", chunk.at)
            field = (chunk.field, ">I", 8 + offset)
            stated = chunk.size - 8 - offset if chunk.size >= 8 + offset else 0
            if any(chunk.size in numbers for numbers in _UNKNOWN):
                stated = -1
            at = chunk.at + 8 + offset
            extent = _streamed(file, file.extent(at, stated, field, max(1, block)), ">I")
            if kind == b"DWVW" and extent.stated is None:
                raise BadFile(
                    "its header states no length, and its codes do not show where they end"
                )
            return extent
        elif chunk.name == b"BODY":
            return file.extent(chunk.at, chunk.size, None)
    return None


def _streamed(file: _File, extent: Extent, form: str) -> Extent:
    """Returns the extent with unknown length if the header says 0 but samples seem to follow."""
    if extent.stated != 0 or extent.there <= 0:
        return extent
    at = extent.at
    for chunk in _chunks(file, at, form=form):
        if not _named(chunk.name) or chunk.at + chunk.size > file.size + 1:
            break
        at = chunk.at + chunk.size
    rest = file.size - at
    return extent if rest <= 1 else replace(extent, stated=None)


def _wave64(file: _File) -> Extent | None:
    block = 1
    for chunk in _chunks(file, file.start + 40, 16, "<q", 8, 24):
        if chunk.name[:4] == b"fmt ":
            tag, _, _, _, align = file.read("<HHIIH", chunk.at)
            block = max(1, align) if tag in _IN_BLOCKS else 1
        elif chunk.name[:4] == b"data":
            # A writer to a pipe leaves the length of an empty chunk, or the largest number.
            stated = -1 if chunk.size <= 0 or chunk.size >= 2**62 else chunk.size
            return file.extent(chunk.at, stated, None, block)
    return None


def _caf(file: _File) -> Extent | None:
    kind = b""
    for chunk in _chunks(file, file.start + 8, 4, ">q", 1):
        if chunk.name == b"desc":
            kind = os.pread(file.handle, 4, chunk.at + 8)
        if chunk.name == b"data":
            if kind == b"alac" and chunk.size < 4:
                raise BadFile(
                    "its header states no length, and its codes do not show where they end"
                )
            stated = chunk.size - 4 if chunk.size >= 4 else -1
            return file.extent(chunk.at + 4, stated, (chunk.field, ">q", 4))
    return None


def _sun(file: _File, head: bytes) -> Extent:
    order = ">" if head[:4] == b".snd" else "<"
    offset, stated, kind = struct.unpack(f"{order}3I", head[4:16])
    block = _SUN_BLOCKS.get(kind, 1)
    # libsndfile reads ADPCM to the end of the file, whatever the header says.
    field = (file.start + 8, f"{order}I", 0) if block == 1 else None
    return file.extent(file.start + offset, stated or -1, field, block)


def _older(file: _File, head: bytes) -> Extent | None:
    """Returns the extent in a format with a fixed header, whose length libsndfile ignores."""
    start, order = file.start, ">" if head[126:128] == b"MI" else "<"
    if head[:7] == b"NIST_1A":
        text = os.pread(file.handle, 4096, start).decode("latin-1")
        size = re.match(r"NIST_1A\n\s*(\d+)\n", text)
        found = dict(re.findall(r"^(\w+) -\w+ (\d+)", text, re.MULTILINE))
        if size is None or "sample_count" not in found:
            return None
        names = ("sample_count", "channel_count", "sample_n_bytes")
        stated = math.prod(int(found.get(name, 1)) for name in names)
        return file.extent(start + int(size[1]), stated, None)
    if head[:20] == b"Creative Voice File\x1a":
        (at,) = struct.unpack("<H", head[20:22])
        while True:
            (word,) = file.read("<I", start + at)
            kind, size_ = word & 0xFF, word >> 8
            if kind in (1, 9):
                # libsndfile reads the end marker as one more sample.
                skip = 2 if kind == 1 else 12
                return file.extent(start + at + 4 + skip, size_ - skip, None)
            if kind == 0:
                return None
            at += 4 + size_
    if head[:4] == b"2BIT":
        mono, bits = struct.unpack(">hH", head[12:16])
        (frames,) = struct.unpack(">I", head[26:30])
        return file.extent(start + 128, frames * (2 if mono else 1) * (bits // 8), None)
    if head[:2] == b"\x01\x04" and len(head) > 42 and head[21] < 2:
        (frames,) = struct.unpack("<I", head[30:34])
        return file.extent(start + 42, 2 * frames * (1 + head[21]), None)
    if head[:15] == b"ALawSoundFile**":
        (stated,) = struct.unpack(">I", head[18:22])
        return file.extent(start + 32, stated, None)
    if head[:10] == b"MATLAB 5.0":
        # Two matrices: the sample rate; then flags, dimensions, name and samples.
        (first,) = file.read(f"{order}I", start + 132)
        at = start + 136 + first + 8 + 16 + 16
        kind, name = file.read(f"{order}HH", at)[:: 1 if order == "<" else -1]
        (long,) = file.read(f"{order}I", at + 4)
        at += 8 if name else 8 + -(-long // 8) * 8
        (stated,) = file.read(f"{order}I", at + 4)
        return file.extent(at + 8, stated, None)
    return None
