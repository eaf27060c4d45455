"""Datasets that somebody forged, with right hashes: one line each, and nothing is read outside."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpprune.cli.main import main
from shards.errors import UserError
from shards.manifest import canonical, sha256_of, sha256_of_file
from shards.reader import open_dataset
from shards.verify import verify

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(tau_dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(tau_dataset, tmp_path / "d")
    return tmp_path / "d"


def seal(folder: Path, change: Change = lambda document: None) -> None:
    """Change dataset.json, and make its hashes right."""
    path = folder / "dataset.json"
    document = json.loads(path.read_bytes())
    document["index"]["sha256"] = sha256_of_file(folder / "index.parquet")
    if "bytes" in document["index"]:
        document["index"]["bytes"] = (folder / "index.parquet").stat().st_size
    change(document)
    del document["sha256"]
    path.write_bytes(canonical({**document, "sha256": sha256_of(canonical(document))}))


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(UserError) as error:
        open_dataset(folder)
    assert "\n" not in str(error.value)
    assert any(problem.what for problem in verify(folder))
    capsys.readouterr()
    for command in (["info"], ["info", "--json"]):
        assert main(["shards", *command, str(folder)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
    assert main(["shards", "verify", str(folder)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    return str(error.value)


def put(*path: Any) -> Change:
    """put("shards", 0, "name", "x") sets document["shards"][0]["name"] = "x"."""
    *keys, last, value = path

    def change(document: Any) -> None:
        for key in keys:
            document = document[key]
        document[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(
            put("shards", 0, "name", name)
            for name in ("..", ".", "", "/etc/passwd", "a/../../x.tar", "../x.tar", ".hidden",
                         "a\nb.tar", "train-000001.tar", "x" * 300, 3, None, ["x"])
        ),
        put("shards", 0, "bytes", -1),
        put("shards", 0, "bytes", 2**60),
        put("shards", 0, "bytes", 100),
        put("shards", 0, "count", 10**12),
        put("shards", 0, "count", 39),
        put("shards", 0, "count", True),
        put("shards", 0, "count", "40"),
        put("shards", 0, "split", "test"),
        put("shards", 0, "split", "nowhere"),
        put("shards", 0, "sha256", "x"),
        put("shards", []),
        put("shards", {}),
        put("shards", [[]]),
        put("shape", [2**60]),
        put("shape", [2**20, 2**20, 2**20]),
        put("shape", [-32000]),
        put("shape", [32000.0]),
        put("shape", []),
        put("shape", 32000),
        put("dtype", "O"),
        put("dtype", "uint8"),
        put("encoding", "mp3"),
        put("encoding", "npy"),
        put("kind", "image"),
        put("kind", None),
        put("sample_rate", None),
        put("sample_rate", 0),
        put("sample_rate", "32000"),
        put("classes", []),
        put("classes", "airport"),
        put("classes", [1, 2]),
        put("classes", ["a"] * 10),
        put("groups", ["label"]),
        put("groups", ["device", "device"]),
        put("groups", [{}]),
        put("splits", "train", "count", 10**9),
        put("splits", "train", "classes", {}),
        put("splits", "train", "classes", "airport", 10**9),
        put("splits", "train", 3),
        put("splits", {}),
        put("splits", "more", {"count": 0, "classes": {}}),
        put("index", "rows", 10**9),
        put("index", "name", "../index.parquet"),
        put("index", None),
        put("rejected", {"name": "../x", "sha256": "0" * 64, "count": 1}),
        put("rejected", []),
        put("source", 3),
        put("more", 3),
        put("format", ["cpprune-shards/1"]),
    ],
)  # fmt: skip
def test_a_forged_manifest(copy, capsys, change):
    seal(copy, change)
    refused(copy, capsys)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"format":' * 2000,
        b"\xff\xfe",
        b'{"a": 1, "a": 2}',
        b"9" * 5000,
    ],
)
def test_a_manifest_that_breaks_readers(copy, capsys, data):
    (copy / "dataset.json").write_bytes(data)
    refused(copy, capsys)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the columns of the index, as numpy arrays or lists, and make its hash right."""
    path = folder / "index.parquet"
    table = pq.read_table(path)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
    seal(folder)


def numbers(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    def edit(columns: dict[str, Any]) -> None:
        kind, values = columns[name].type, columns[name].to_numpy().copy()
        columns[name] = pa.array(change(values), type=kind)

    return edit


def long_texts(rows: int) -> Any:
    return pa.array([f"{row % 30:02}" + "x" * 2**20 for row in range(rows)])


def first(value: Any) -> Callable[[Any], Any]:
    return lambda values: np.concatenate([[value], values[1:]])


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (numbers("label", first(10)), "labels"),
        (numbers("label", first(-1)), "labels"),
        (numbers("label", lambda values: values + 2**30), "labels"),
        (numbers("offset", first(-1)), "places"),
        (numbers("offset", first(2**62)), "places"),
        (numbers("offset", lambda values: values * 0 + 512), "places"),
        (numbers("offset", lambda values: values[::-1]), "places"),
        (numbers("size", first(0)), "places"),
        (numbers("size", first(-5)), "places"),
        (numbers("size", first(2**31 - 1)), "places"),
        (numbers("size", lambda values: values * 0 + 64_000 - 44), "sizes"),
        (numbers("size", lambda values: values * 0 + 10), "sizes"),
        (numbers("size", first(64_040)), "sizes"),
        (numbers("shard", first(99)), "clips of the shards"),
        (numbers("shard", first(-1)), "clips of the shards"),
        (numbers("shard", lambda values: values[::-1]), "clips of the shards"),
        (lambda c: c.update({k: v.slice(1) for k, v in c.items()}), "rows"),
        (lambda c: c.update({k: v.slice(0, 0) for k, v in c.items()}), "rows"),
        (lambda c: c.pop("label"), "'label'"),
        (lambda c: c.pop("device"), "'device'"),
        (lambda c: c.update(label=c["label"].cast("int64")), "'label'"),
        (lambda c: c.update(label=c["label"].cast("float64")), "'label'"),
        (lambda c: c.update(label=c["key"]), "'label'"),
        (lambda c: c.update(key=c["label"]), "'key'"),
        (lambda c: c.update(key=c["key"].cast("binary")), "'key'"),
        (lambda c: c.update(recording=pa.array([["x"]] * len(c["key"]))), "'recording'"),
        (lambda c: c.update(recording=pa.nulls(len(c["key"]), "string")), "rows"),
        (lambda c: c.update(label=pa.nulls(len(c["key"]), "int32")), ""),
        (lambda c: c.update(key=pa.array(["x" * 2**20] * len(c["key"]))), "a key has more than"),
        (lambda c: c.update(key=long_texts(len(c["key"]))), "unpacks"),
    ],
)  # fmt: skip
def test_a_forged_index(copy, capsys, edit, what):
    rewrite(copy, edit)
    assert what in refused(copy, capsys)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 100, b"\xff" * 1000])
def test_an_index_that_is_none(copy, capsys, data):
    (copy / "index.parquet").write_bytes(data)
    seal(copy)
    assert "index" in refused(copy, capsys)


def test_records_that_lie_elsewhere_are_found_by_verify(copy):
    for change in (first(-1), first(2**62)):
        rewrite(copy, numbers("record_offset", change))
        assert any("places" in problem.what for problem in verify(copy))


def test_commands_on_a_forged_dataset_end_with_a_line(call, copy, capsys):
    rewrite(copy, numbers("label", first(10)))
    run = copy.parent / "run"
    for words in (["train", "--data.path", copy, "--run", run],):
        capsys.readouterr()
        assert call(*words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_what_is_no_file_in_place_of_one(copy, kind):
    for name in ("train-000000.tar", "index.parquet", "dataset.json"):
        path = copy / name
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(name)
        with pytest.raises(UserError) as error:
            open_dataset(copy).split("train").fetch([0])
        assert "\n" not in str(error.value)


def test_flac_of_another_length_is_said(tau_options, tmp_path):
    """A clip of one sample would be spread over the whole row without a word."""
    import dataclasses
    import io
    import zlib

    import soundfile

    from shards.build.dataset import build_dataset

    folder = tmp_path / "d"
    build_dataset(dataclasses.replace(tau_options, encoding="flac"), folder, workers=1)
    short = io.BytesIO()
    soundfile.write(short, np.ones(1, np.int16), 32_000, format="FLAC", subtype="PCM_16")
    payload = short.getvalue()
    index = pq.read_table(folder / "index.parquet")
    offset = index.column("offset")[0].as_py()
    with (folder / "train-000000.tar").open("r+b") as file:
        file.seek(offset)
        file.write(payload)
    size = index.column("size")[0].as_py()
    assert len(payload) <= size

    def change(columns: dict[str, Any]) -> None:
        numbers("crc32", first(zlib.crc32(payload)))(columns)
        numbers("size", first(len(payload)))(columns)

    rewrite(folder, change)
    with pytest.raises(UserError, match="it has the shape"):
        open_dataset(folder).split("train").fetch([0])
