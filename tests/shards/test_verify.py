import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards import UserError, open_dataset
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions
from shards.manifest import canonical, read_index, sha256_of
from shards.verify import Problem, verify


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, make_audio: Callable[..., Path]) -> Path:
    """A dataset of 40 short clips with a bad file left out; about 70 kB."""
    root = tmp_path_factory.mktemp("verify")
    for name in ("owl", "wren"):
        for i in range(20):
            make_audio(root / "s" / name / f"{i}.wav", seconds=0.02, seed=i)
    (root / "s" / "owl" / "broken.wav").write_text("no audio")
    options = BuildOptions(
        kind="folder",
        source=root / "s",
        seconds=0.02,
        sample_rate=8000,
        shard_size=16,
        on_error="skip",
    )
    build_dataset(options, root / "d", workers=1)
    return root / "d"


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "d"))


def test_a_whole_dataset(small: Path) -> None:
    assert verify(small) == []
    assert (small / "rejected.csv").exists()
    with pytest.raises(UserError, match="does not exist"):
        verify(small / "nothing")


@pytest.mark.slow
def test_every_flipped_bit_is_found_and_named(copy: Path) -> None:
    numbers, texts = read_index(
        copy / "index.parquet", ("key", "shard", "record_offset", "record_size")
    )
    names = [shard.name for shard in open_dataset(copy).manifest.shards]
    files = sorted(copy.iterdir())
    sizes = np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(0)
    places = rng.integers(0, sizes.sum(), 1000)
    starts = np.cumsum(sizes) - sizes
    kinds: set[str] = set()
    for place in places.tolist():
        number = int(np.searchsorted(starts, place, side="right")) - 1
        file, offset = files[number], place - int(starts[number])
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        problems = verify(copy)
        file.write_bytes(whole)
        assert len(problems) == 1, (file.name, offset)
        assert problems[0].file == file.name
        if file.suffix == ".tar":
            inside = (
                (numbers["shard"] == names.index(file.name))
                & (numbers["record_offset"] <= offset)
                & (offset < numbers["record_offset"] + numbers["record_size"])
            )
            rows = np.flatnonzero(inside)
            expected = texts["key"][rows[0]].as_py() if len(rows) else None
            assert problems[0].key == expected
            assert expected is None or expected in problems[0].what
        kinds.add(problems[0].what.split(" of ")[0])
    assert {"payload", "tar header, JSON or padding", "the end"} <= kinds
    assert verify(copy) == []


def _what(problems: list[Problem]) -> dict[str, str]:
    return {problem.file: problem.what for problem in problems}


@pytest.mark.parametrize("keep", [0, 1, 511, 5000, -1, -513, -1024, -1025])
def test_truncation(keep: int, copy: Path) -> None:
    shard = copy / "train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:keep])
    problem = verify(copy)[0]
    assert problem.file == shard.name
    assert "cut short" in problem.what
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        members = tar.getmembers()
    size = len(whole[:keep])
    lost = [
        member.name[:-5]
        for member in members
        if member.name.endswith(".json") and member.offset_data + 512 > size
    ]
    assert problem.key == (lost[0] if lost else None)
    assert f"{len(lost)} clips are lost" in problem.what


def test_a_longer_shard(copy: Path) -> None:
    shard = copy / "train-000001.tar"
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert "too long" in _what(verify(copy))[shard.name]


def test_missing_extra_renamed_and_swapped_files(copy: Path) -> None:
    first, second = copy / "train-000000.tar", copy / "train-000001.tar"
    (copy / "notes.txt").write_text("hello")
    assert _what(verify(copy)) == {"notes.txt": "unknown file: it is not part of the dataset"}
    (copy / "notes.txt").unlink()

    first.rename(copy / "train-000009.tar")
    found = _what(verify(copy))
    elsewhere = "train-000009.tar is this shard under another name"
    assert found[first.name] == f"missing: 16 clips; {elsewhere}"
    assert found["train-000009.tar"] == "unknown file: it is train-000000.tar under another name"

    second.rename(first)
    (copy / "train-000009.tar").rename(second)
    assert _what(verify(copy)) == {
        first.name: f"holds what belongs in {second.name}",
        second.name: f"holds what belongs in {first.name}",
    }
    for name in ("train-000000.tar", "index.parquet", "rejected.csv"):
        (copy / name).unlink()
    assert {"train-000000.tar", "index.parquet", "rejected.csv"} <= set(_what(verify(copy)))
    (copy / "dataset.json").unlink()
    assert _what(verify(copy))["dataset.json"].startswith("missing")


def test_an_edited_manifest(copy: Path) -> None:
    path = copy / "dataset.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"owl"', b'"elk"'))
    assert "its sha256 does not match" in _what(verify(copy))["dataset.json"]
    path.write_bytes(whole.replace(b"  ", b" ", 1))
    assert "its sha256 does not match" in _what(verify(copy))["dataset.json"]
    path.write_bytes(whole[:100])
    assert "not valid JSON" in _what(verify(copy))["dataset.json"]
    # Forged with care: the hash is right, the counts are not.
    document = json.loads(whole)
    del document["sha256"]
    document["splits"]["train"]["count"] += 1
    document["sha256"] = sha256_of(canonical(document))
    path.write_bytes(canonical(document))
    assert "contradict" in _what(verify(copy))["dataset.json"]


def test_an_edited_sample(copy: Path) -> None:
    shard = copy / "train-000000.tar"
    key = open_dataset(copy).split("train").keys[3]
    data = shard.read_bytes()
    place = data.index(f"{key}.json".encode())
    label = data.index(b'"label":', place) + len(b'"label":')
    shard.write_bytes(data[:label] + b"7" + data[label + 1 :])
    assert verify(copy) == [
        Problem(shard.name, key, f"tar header, JSON or padding of {key} is damaged")
    ]


def test_what_a_build_left_over(copy: Path) -> None:
    (copy / ".build").mkdir()
    assert "left over from the build" in _what(verify(copy))[".build"]


def test_shards_are_plain_tar_files(small: Path) -> None:
    for shard in open_dataset(small).manifest.shards:
        with tarfile.open(small / shard.name) as tar:
            members = tar.getmembers()
        assert len(members) == 2 * shard.count
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert member.isreg()
