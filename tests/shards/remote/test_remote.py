"""Datasets behind a URL: the same clips, every fault of the way named, nothing half-written."""

import pickle
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from shards import Dataset, UserError, open_dataset
from shards.manifest import canonical, parse_manifest, sha256_of
from shards.verify import verify


@pytest.fixture(scope="module")
def clips(tau_dataset: Path) -> np.ndarray:
    """All 200 clips, read from the local folder."""
    return open_dataset(tau_dataset).fetch(np.arange(200))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[0-9a-f]*/*.tar*"))


def offline(name: str, block: bytes) -> bytes:
    raise ConnectionError("the network is down")


class Spoiled:
    """Changes a byte of the first block of a file, the first `times` times."""

    def __init__(self, name: str, times: float) -> None:
        self.name, self.left = name, times

    def __call__(self, name: str, block: bytes) -> bytes:
        if name != self.name or not block or self.left <= 0:
            return block
        self.left -= 1
        return block[:5000] + bytes([block[5000] ^ 1]) + block[5001:]


# --- the same clips -----------------------------------------------------------------------------------


def same_as_local(remote: Dataset, local: Dataset, clips: np.ndarray) -> None:
    assert remote.fingerprint == local.fingerprint
    assert remote.splits == local.splits
    order = np.random.default_rng(0).permutation(200)
    for part in np.split(order, (1, 20, 120)):
        assert (remote.fetch(part) == clips[part]).all()
    for name in local.splits:
        mine, theirs = remote.split(name), local.split(name)
        assert mine.keys == theirs.keys
        assert (mine.labels == theirs.labels).all()
        assert (mine.column("device") == theirs.column("device")).all()


@pytest.fixture(params=["file", "memory", "flaky"])
def some_url(request: pytest.FixtureRequest, flaky: Any, tau_dataset: Path) -> Iterator[str]:
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        for path in tau_dataset.iterdir():
            memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
        yield "memory://bucket"
        memory.rm("/bucket", recursive=True)
    else:
        yield f"{request.param}://{tau_dataset}"


def test_clips_are_those_of_the_local_dataset(
    some_url: str, tau_dataset: Path, clips: np.ndarray, hashes: Any, cache: Path
) -> None:
    remote, local = open_dataset(f"{some_url}/"), open_dataset(tau_dataset)
    assert str(remote.path) == some_url
    assert some_url in repr(remote.split("val"))
    same_as_local(remote, local, clips)
    assert hashes(cache / local.fingerprint) == hashes(tau_dataset)
    assert verify(cache / local.fingerprint) == verify(some_url) == []


def test_a_dataset_of_flac(
    flaky: Any, tmp_path: Path, make_audio: Callable[..., Path], cache: Path
) -> None:
    from shards.build.dataset import build_dataset
    from shards.build.plan import BuildOptions

    for name in ("owl", "wren"):
        for i in range(20):
            make_audio(tmp_path / "s" / name / f"{i}.wav", seconds=0.1, seed=i)
    options = {"seconds": 0.1, "sample_rate": 8000, "shard_size": 8, "encoding": "flac"}
    folder = tmp_path / "d"
    build_dataset(BuildOptions(kind="folder", source=tmp_path / "s", **options), folder, workers=1)
    ids = np.random.default_rng(0).permutation(40)
    expected = open_dataset(folder).fetch(ids)
    assert (open_dataset(f"flaky://{folder}").fetch(ids) == expected).all()
    small = open_dataset(f"flaky://{folder}", tmp_path / "other", cache_bytes=30_000)
    assert small.folder.one_by_one
    assert (small.fetch(ids) == expected).all()


def test_a_second_run_needs_no_network(
    flaky: Any, url: str, clips: np.ndarray, caplog: pytest.LogCaptureFixture, cache: Path
) -> None:
    open_dataset(url).fetch(np.arange(200))
    first = flaky.opened("")
    again = open_dataset(url)
    assert flaky.opened("") == [*first, "dataset.json"]
    flaky.fault = offline
    copy = pickle.loads(pickle.dumps(again))
    assert (copy.split("test").fetch(np.arange(50)) == clips[-50:]).all()
    assert caplog.messages == []
    assert (open_dataset(url).fetch(np.arange(200)) == clips).all()
    (said,) = caplog.messages
    assert "the network is down" in said
    assert str(cache) in said
    with pytest.raises(UserError, match="the network is down"):
        open_dataset(url, cache / "another")


def resealed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a dataset's manifest as a build would have written it."""
    import json

    path = folder / "dataset.json"
    document = json.loads(path.read_bytes())
    change(document)
    del document["sha256"]
    path.write_bytes(canonical({**document, "sha256": sha256_of(canonical(document))}))


def test_a_dataset_that_was_replaced_is_noticed(
    flaky: Any, tau_dataset: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tau_dataset, tmp_path / "d"))
    before = open_dataset(f"flaky://{folder}")
    resealed(folder, lambda document: document["classes"].reverse())
    manifest = parse_manifest((folder / "dataset.json").read_bytes())
    after = open_dataset(f"flaky://{folder}")
    assert after.fingerprint == manifest.sha256 != before.fingerprint
    assert after.classes == before.classes[::-1]


def test_what_is_expected_comes_in_the_background(flaky: Any, url: str, cache: Path) -> None:
    dataset = open_dataset(url)
    shards = [shard.name for shard in dataset.manifest.shards]
    ids = np.concatenate([dataset.split(name).ids[::-1] for name in ("test", "train")])
    wanted = [name for name in reversed(shards) if name.startswith("test")]
    wanted += [name for name in reversed(shards) if name.startswith("train")]
    assert len(wanted) > 4
    dataset.prefetch(ids)
    end = time.monotonic() + 600
    while not (cache / dataset.fingerprint / wanted[-1]).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert flaky.opened() == wanted
    flaky.fault = offline
    dataset.fetch(ids)


# --- faults of the way --------------------------------------------------------------------------------


def test_a_byte_that_arrives_wrong_is_fetched_again(
    flaky: Any, url: str, clips: np.ndarray
) -> None:
    flaky.fault = Spoiled("train-000001.tar", times=2)
    assert (open_dataset(url).fetch(np.arange(200)) == clips).all()
    assert flaky.opened().count("train-000001.tar") == 3
    assert flaky.opened().count("train-000000.tar") == 1


def test_a_byte_that_always_arrives_wrong_is_named(
    flaky: Any, url: str, tau_dataset: Path, cache: Path
) -> None:
    flaky.fault = Spoiled("train-000001.tar", times=float("inf"))
    dataset = open_dataset(url)
    with pytest.raises(UserError) as caught:
        dataset.fetch(np.arange(100))
    data = bytearray((tau_dataset / "train-000001.tar").read_bytes())
    data[5000] ^= 1
    text = str(caught.value)
    for part in (
        f"{url}/train-000001.tar",
        dataset.manifest.shards[1].sha256,
        sha256_of(data),
        "3 times",
    ):
        assert part in text
    assert "\n" not in text
    assert names(cache) == ["train-000000.tar"]


def test_a_fetch_that_breaks_off(
    flaky: Any, url: str, clips: np.ndarray, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Once with an error and once with an early end, in the middle of the shard; then always."""
    monkeypatch.setattr("shards.remote.fetch.BLOCK", 1 << 20)
    seen = 0

    def broken(name: str, block: bytes) -> bytes:
        nonlocal seen
        seen += name == "train-000002.tar"
        if seen == 2:
            raise ConnectionResetError("by peer")
        return b"" if seen == 4 else block

    flaky.fault = broken
    assert (open_dataset(url).fetch(np.arange(200)) == clips).all()
    assert flaky.opened().count("train-000002.tar") == 3

    def always(name: str, block: bytes) -> bytes:
        seen = names(cache / "2")
        if name.endswith(".tar") and seen:
            assert seen == ["train-000000.tar.part"]
            raise ConnectionResetError("by peer")
        return block

    flaky.fault = always
    with pytest.raises(UserError, match=r"train-000000\.tar: cannot be fetched .*by peer.*3 times"):
        open_dataset(url, cache / "2").fetch(np.arange(200))
    assert names(cache / "2") == []


def test_a_copy_that_was_damaged_later(flaky: Any, url: str, cache: Path) -> None:
    """The index is fetched again; a damaged clip is named with what to do."""
    dataset = open_dataset(url)
    dataset.fetch([0])
    folder = cache / dataset.fingerprint
    for name, place in (("index.parquet", 900), ("train-000000.tar", 5000)):
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)
    dataset = open_dataset(url)
    assert flaky.opened(".parquet") == ["index.parquet"] * 2
    with pytest.raises(UserError, match=rf"is damaged .*remove {folder}"):
        dataset.fetch([0])


# --- mistakes -----------------------------------------------------------------------------------------


def test_addresses_that_cannot_be_used(
    flaky: Any, url: str, tau_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(location: str, *parts: str) -> None:
        with pytest.raises(UserError) as caught:
            open_dataset(location)
        assert "\n" not in str(caught.value)
        for part in (location, *parts):
            assert part in str(caught.value)

    refused("nope://bucket/dataset", "Protocol not known", "s3://")
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.setitem(sys.modules, package, None)
        refused(f"{protocol}://bucket/dataset", f"pip install {package}")
    started = time.monotonic()
    monkeypatch.setattr(
        "shards.remote.transfer.RETRY_DELAYS", (60.0, 60.0)
    )  # what is not there is not waited for
    refused(f"flaky://{tmp_path}/nothing", "dataset.json does not exist")
    assert time.monotonic() - started < 30
    monkeypatch.setattr("shards.remote.transfer.RETRY_DELAYS", (0.0, 0.0))
    folder = Path(shutil.copytree(tau_dataset, tmp_path / "d"))
    (folder / "val-000000.tar").unlink()
    with pytest.raises(UserError, match=r"d/val-000000.tar does not exist"):
        open_dataset(f"flaky://{folder}").split("val").fetch([0])
    resealed(folder, lambda document: document["shards"][0].update(name="../../escaped.tar"))
    refused(f"flaky://{folder}", "its shards[0].name: expected str matching")
    (folder / "dataset.json").write_text("{}")
    refused(f"flaky://{folder}", "dataset.json cannot be used")
    (tmp_path / "file").touch()
    monkeypatch.setenv("CPPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file cannot be written \(File exists\); set data.cache"):
        open_dataset(url)


def test_the_commands_take_a_url(
    flaky: Any, url: str, cli: Any, refused: Any, tau_dataset: Path, cache: Path
) -> None:
    local = cli("shards", "info", tau_dataset, "--json").json
    assert cli("shards", "info", url, "--json").json == {**local, "path": url}
    assert flaky.opened() == []
    whole = cli("shards", "verify", url)
    assert (whole.status, whole.out) == (0, f"{url} is whole\n")
    flaky.fault = Spoiled("val-000000.tar", times=float("inf"))
    damaged = cli("shards", "verify", url, "--json")
    assert damaged.status == 1
    (problem,) = damaged.json["problems"]
    assert problem["file"] == "val-000000.tar"
    assert f"{url}/val-000000.tar: damaged: expected sha256" in problem["what"]
    assert names(cache) == []
    for command in ("info", "verify"):
        refused("shards", command, "flaky:///nowhere", names=["flaky:///nowhere/dataset.json"])
