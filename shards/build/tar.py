"""Tar records whose bytes depend only on their contents.

A record is one sample: the header, bytes and padding of `KEY.wav` (or `.flac`, `.npy`), then those
of `KEY.json`. All tar tools can read a shard; `tarfile` is not used to write one because we need the
offset and checksum of every part.
"""

import json
import zlib
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
# A ustar name has at most 100 bytes; the longest extension is ".json".
LONGEST_KEY = 95


class Record(NamedTuple):
    """Place of a sample in its shard, in bytes, and the CRC-32 of its parts."""

    offset: int
    size: int
    crc32: int
    record_offset: int
    record_size: int
    record_crc32: int


def member_header(name: str, size: int) -> bytes:
    """Returns the 512-byte ustar header of a regular file: mode 0644, no owner, time 0."""
    header = bytearray(BLOCK)
    encoded = name.encode("ascii")
    assert len(encoded) <= 100
    header[: len(encoded)] = encoded
    header[100:136] = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size
    header[136:148] = b"%011o\0" % 0
    header[148:156] = b" " * 8  # the checksum counts itself as spaces
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[329:345] = b"0000000\0" * 2
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def padding(size: int) -> bytes:
    """Returns the zero bytes that follow `size` bytes up to the next block."""
    return bytes(-size % BLOCK)


def json_member(fields: Mapping[str, object]) -> bytes:
    """Returns the canonical bytes of a sample's JSON."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def write_record(
    file: BinaryIO,
    offset: int,
    key: str,
    extension: str,
    payload: bytes,
    fields: Mapping[str, object],
) -> Record:
    """Appends one sample to a shard.

    Args:
        file: the shard, open for writing, at `offset`.
        offset: bytes written so far.
        key: the sample's name, without dot or slash, at most `LONGEST_KEY` ASCII characters.
        extension: of the payload, without the dot.
        payload: the encoded clip or image.
        fields: the sample's JSON.
    """
    text = json_member(fields)
    head = member_header(f"{key}.{extension}", len(payload))
    tail = padding(len(payload)) + member_header(f"{key}.json", len(text)) + text
    tail += padding(len(text))
    file.write(head)
    file.write(payload)
    file.write(tail)
    return Record(
        offset=offset + BLOCK,
        size=len(payload),
        crc32=zlib.crc32(payload),
        record_offset=offset,
        record_size=BLOCK + len(payload) + len(tail),
        record_crc32=zlib.crc32(tail, zlib.crc32(payload, zlib.crc32(head))),
    )
