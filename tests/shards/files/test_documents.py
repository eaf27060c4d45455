"""The one reader of JSON and YAML that others wrote."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pytest

from shards.errors import UserError
from shards.files.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    DocumentError,
    json_lines,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_yaml,
)


@dataclass(frozen=True)
class Part:
    name: str
    bytes: Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    kind: Literal["audio", "image"] = "audio"
    share: float = 1.0
    rest: dict[str, Any] | None = None

    def __post_init__(self):
        if self.share > 1:
            raise ValueError("share: must not be above 1")


def test_a_document_becomes_its_dataclass():
    text = b'{"parts": [{"name": "a", "bytes": 3}], "share": 1, "rest": {"x": [1, null]}}'
    whole = Whole((Part("a", 3),), "audio", 1.0, {"x": [1, None]})
    assert parse_json(text, Whole) == parse_yaml(text, Whole) == whole
    assert parse_json(b"\xef\xbb\xbf" + text, Whole) == whole  # Windows' editors begin so


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"parts": [{"name": "a", "bytes": 1}, {"name": "b", "bytes": "1"}]}', "parts[1].bytes"),
        ('{"parts": [{"name": "a", "bytes": -1}]}', "parts[0].bytes"),
        ('{"parts": [{"name": "a", "bytes": 1.5}]}', "parts[0].bytes"),
        ('{"parts": [{"name": "a", "bytes": true}]}', "parts[0].bytes"),
        ('{"parts": [{"name": "a", "bytes": 99999999999999999999}]}', "does not fit in 64 bits"),
        ('{"parts": [{"name": "a"}]}', "parts[0]: "),
        ('{"parts": {}}', "parts: "),
        ("[]", "expected object, got array"),
        ("null", "expected object, got null"),
        ('{"parts": [], "kind": "video"}', "kind: "),
        ('{"parts": [], "share": 2}', "share: must not be above 1"),
        ('{"parts": [], "rest": {"x": "\\u0000"}}', "NUL"),
        ('{"parts": [], "parts": []}', "'parts' twice"),
    ],
)
@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_what_differs_is_named_with_its_place(parse, text, what):
    with pytest.raises(DocumentError) as error:
        parse(text, Whole)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
        b'{"x":' * 1000 + b"1" + b"}" * 1000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"9" * 5000,
        b"9" * 2000,
        b"NaN",
        b"[-Infinity]",
        b"1e999",
        rb'"\ud800"',
        rb'{"\udfff": 1}',
        b'{"a": {"b": 1, "b": 1}}',
    ],
)
def test_json_that_would_break_its_reader_is_refused_in_a_line(data):
    with pytest.raises(DocumentError) as error:
        parse_json(data, Any)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_numbers_that_are_not_finite_are_read_where_that_is_allowed():
    assert parse_json("[NaN, -Infinity, 1]", list[float | None], nan=True) == [None, None, 1]
    with pytest.raises(DocumentError, match="inf"):
        parse_json("[1e999]", list[float], nan=True)


def test_lines_of_json_are_told_apart():
    lines = json_lines(b'{"x": 1}\n{"x": "1"}\n\xff\n[\n{"x": NaN}\n{"x": 2', dict[str, int | None])
    assert [line for line in lines if isinstance(line, dict)] == [{"x": 1}, {"x": None}]
    assert [isinstance(line, DocumentError) for line in lines] == [False, True, True, True, False]


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i + 1}: &a{i + 1}\n  <<: [{', '.join([f'*a{i}'] * 30)}]\n  k{i}: 1\n" for i in range(12)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "- &x 1\n" + "- *x\n" * 2000,
        "[" * 5000,
        "- " * 5000 + "x",
        "a: .nan",
        "a: -.inf",
        "? [1, 2]\n: 3",
        "a: 2026-99-99",
        "a: !!int x",
        "a: !!float x",
        "!!python/object/apply:os.system [id]",
        "a: 1\na: 2",
        "a: {b: 1, b: 2}",
        "\t- x:",
        "a: \x00",
        'a: "\\0"',
        "a: &b\n--- x\n--- y",
        "x: " + "9" * 5000,
    ],
)
def test_yaml_that_would_break_its_reader_is_refused_in_a_line(text):
    with pytest.raises(DocumentError) as error:
        parse_yaml(text, dict[str, Any])
    assert "\n" not in str(error.value)


def test_merges_that_multiply_are_refused_or_cost_nothing():
    """Before its version 6.0.4, PyYAML repeats a merge wherever it is merged."""
    with suppress(DocumentError):
        assert len(str(parse_yaml(MERGES, dict[str, Any]))) < 10_000


def test_yaml_may_repeat_and_merge():
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\nc: *a\nd: {<<: *a}\ne: {<<: {x: 1}}"
    found = parse_yaml(text, dict[str, Any])
    assert found["b"] == {"x": 3, "y": 2}
    assert found["c"] == found["d"] == {"x": 1, "y": 2}
    assert parse_yaml("", Any) is None


def test_what_is_no_file_of_a_bounded_size_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # takes no space on the disk
    wrong = {
        "pipe": "a pipe or device, not a file",
        "folder": "a folder, not a file",
        "absent": "No such file",
        "loop": "symbolic links",
        "large": "1,099,511,627,776 bytes",
        "no\0name": "null byte",
        "x" * 300: "too long",
    }
    for name, why in wrong.items():
        for read in (read_json, read_yaml):
            with pytest.raises(UserError) as error:
                read(tmp_path / name, Any)
            assert why in str(error.value)
    with pytest.raises(UserError, match="a pipe or device"):
        read_bytes(tmp_path / "pipe")


def test_a_file_may_be_as_large_as_that_and_no_larger(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b" " * MAX_BYTES)
    assert len(read_bytes(file)) == MAX_BYTES
    with pytest.raises(UserError, match="bytes; at most"):
        read_bytes(file, MAX_BYTES - 1)


def test_the_file_and_the_remedy_are_named(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"parts": 1}))
    with pytest.raises(UserError) as error:
        read_json(file, Whole, remedy="copy it again")
    assert str(error.value) == f"{file}: parts: expected array, got int; copy it again"
