"""Pages of an Ogg file: missing pages, and the boundaries of chained recordings."""

import os
import struct

from shards.audio.sound import BadFile

_FIRST, _LAST = 2, 4


def links(handle: int, start: int, size: int) -> list[tuple[int, int]]:
    """Returns the (first byte, end) of each recording chained in a file of `size` bytes.

    Raises:
        BadFile: a recording is truncated, or pages are missing.
    """
    found: list[tuple[int, int]] = []
    expected: dict[int, int] = {}
    at = begin = start
    heading = True
    while (page := _page(handle, at, size)) is not None:
        end, flags, stream, number = page
        if end > size:
            raise BadFile(f"cut short: {size - at} of {end - at} bytes of its last page are there")
        if flags & _FIRST:
            if not heading:
                found.append((begin, at))
                begin = at
                expected.clear()
            heading = True
            expected[stream] = number
        else:
            heading = False
            if number != expected.get(stream):
                raise BadFile(f"damaged: a page before page {number} is missing")
        if flags & _LAST:
            expected.pop(stream, None)
        else:
            expected[stream] = number + 1
        at = end
        if _page(handle, at, size) is None:
            at = _resume(handle, at, size)
    if at == begin:
        return []
    # Many writers do not mark the last page: a file that ends with a whole page is taken as complete.
    if expected and at != size:
        raise BadFile("cut short: the page that ends it is not there")
    return [*found, (begin, at)]


def _page(handle: int, at: int, size: int) -> tuple[int, int, int, int] | None:
    """Returns (end, flags, stream, number) of the page at an offset; None if there is no page."""
    head = os.pread(handle, 27 + 255, at)
    if head[:4] != b"OggS":
        return None
    if len(head) < 27 or len(head) < 27 + head[26]:
        return size + 1, 0, 0, 0
    flags, (stream, number), segments = head[5], struct.unpack("<II", head[14:22]), head[26]
    return at + 27 + segments + sum(head[27 : 27 + segments]), flags, stream, number


def _resume(handle: int, at: int, size: int) -> int:
    """Returns the offset of the next page after other bytes; `at` if there is none."""
    place = at
    while place < size:
        window = os.pread(handle, 1 << 16, place)
        found = window.find(b"OggS")
        if found >= 0:
            return place + found
        place += max(1, len(window) - 3)
    return at
