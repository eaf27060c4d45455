"""Files that end in a ZIP archive, which says what they are and holds a checksum of all of themselves.

For formats that have no place for metadata: `unzip -p model.tflite cpprune.json`.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import asdict

from cpprune.export.metadata import SEAL, UNSEALED, Metadata
from shards.files.documents import parse_json, to_json, typed

MEMBER = "cpprune.json"
MOST_METADATA = 1 << 20
YEAR = (1980, 1, 1, 0, 0, 0)  # so that the same model is the same bytes
UNIX = 3


def with_metadata(graph: bytes, metadata: Metadata, **more: object) -> bytes:
    """Return a file: the graph, then an archive with its metadata.

    These hold the graph's `bytes` and a checksum: the SHA-256 of the graph followed by the metadata,
    with 64 zeros in the checksum's place.

    Args:
        graph: what the file is for those who do not look at its end.
        metadata: what it says of itself.
        more: that it says, JSON-ready.
    """
    text = to_json({**asdict(metadata), **more, "bytes": len(graph), SEAL: UNSEALED})
    text = text.replace(UNSEALED, hashlib.sha256(graph + text.encode()).hexdigest())
    member = zipfile.ZipInfo(MEMBER, YEAR)
    member.create_system = UNIX
    archive = io.BytesIO(graph)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(member, text)
    return archive.getvalue()


def split_metadata(data: bytes) -> tuple[bytes, Metadata, dict[str, object]]:
    """Return the graph in a file, its metadata, and all that it says.

    Raises:
        ValueError: the bytes are not those of a file that cpprune wrote.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            member = file.getinfo(MEMBER)
            if member.file_size > MOST_METADATA or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("has metadata that cpprune did not write")
            text = file.read(MEMBER)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(
            "is not a whole file of cpprune export: it does not end in its metadata"
        ) from error
    about = parse_json(text, dict[str, object])
    digest, size = about.pop(SEAL, None), about.pop("bytes", None)
    if not isinstance(digest, str) or not isinstance(size, int) or not 0 < size < len(data):
        raise ValueError("has metadata that cpprune did not write")
    graph = data[:size]
    unsealed = text.replace(digest.encode(), UNSEALED.encode())
    if hashlib.sha256(graph + unsealed).hexdigest() != digest:
        raise ValueError("does not match its checksum: it was changed or damaged")
    return graph, typed(about, Metadata), about
