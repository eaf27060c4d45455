"""Metadata at the end of a file: found again, and every change of the file noticed."""

import io
import json
import zipfile

import pytest
from export_jobs import job_of

from cpprune.export.sealed_archive import MEMBER, split_metadata, with_metadata

GRAPH = bytes(range(256)) * 9


@pytest.fixture(scope="module")
def metadata(exported):
    return job_of(exported("small").model).metadata()


@pytest.fixture(scope="module")
def data(metadata):
    return with_metadata(GRAPH, metadata, cost={"macs": 5})


def test_what_was_written_is_read(data, metadata):
    graph, found, about = split_metadata(data)
    assert (graph, found, about["cost"]) == (GRAPH, metadata, {"macs": 5})
    assert data.startswith(GRAPH)
    about = json.loads(zipfile.ZipFile(io.BytesIO(data)).read(MEMBER))
    assert (about["bytes"], about["classes"]) == (len(GRAPH), metadata.classes)


@pytest.mark.parametrize("place", range(0, 2600, 37))
def test_every_changed_byte_is_noticed(data, place):
    changed = bytearray(data)
    changed[place % len(data)] ^= 1
    try:
        found = split_metadata(bytes(changed))
    except ValueError:
        return
    # Some bytes of an archive say nothing, such as the time of its member.
    assert found == split_metadata(data)
    assert place % len(data) >= len(GRAPH)


def archive(graph, text, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    buffer.write(graph)
    with zipfile.ZipFile(buffer, "a", method) as file:
        file.writestr(MEMBER, text)
    return buffer.getvalue()


def test_other_files(data):
    text = zipfile.ZipFile(io.BytesIO(data)).read(MEMBER).decode()
    whole = "not a whole file of cpprune export"
    for changed, message in (
        (b"", whole),
        (GRAPH, whole),
        (data[: len(data) // 2], whole),
        (data[:-1], whole),
        (b"no model" * 100, whole),
        (archive(GRAPH, text.replace('"bus"', '"car"')), "checksum"),
        (archive(GRAPH[:-1] + b"x", text), "checksum"),
        (archive(GRAPH, text.replace(f'"bytes": {len(GRAPH)}', '"bytes": -1')), "did not write"),
        (archive(GRAPH, text, zipfile.ZIP_DEFLATED), "did not write"),
        (archive(GRAPH, "[]"), "object"),
    ):
        with pytest.raises(ValueError, match=message):
            split_metadata(changed)
