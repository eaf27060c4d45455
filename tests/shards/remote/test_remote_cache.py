"""One cache for several processes and datasets: locks, killed processes, eviction."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shards import Dataset, UserError, open_dataset

TESTS = Path(__file__).parents[2]

# A process that reads a dataset. FAULT is run for every block of every file.
READER = """
import os, sys, time, hashlib
from pathlib import Path
import numpy as np
from flaky_files import FlakyFileSystem
from shards import open_dataset

url, folder, me, other = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
limit = int(sys.argv[5])
FlakyFileSystem.log = folder / "opened"

def wait_for(path):
    end = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)

def fault(name, block):
    {fault}
    return block

FlakyFileSystem.fault = fault
dataset = open_dataset(url, folder / "cache", limit)
(folder / me).touch()
for turn in range({turns}):
    ids = np.random.default_rng(turn).permutation(len(dataset))
    clips = dataset.fetch(ids)
    print(hashlib.sha256(clips.tobytes()).hexdigest())
(folder / f"{{me}} is done").touch()
if other:
    wait_for(folder / f"{{other}} is done")
"""


@pytest.fixture(scope="module")
def clips(tau_dataset: Path) -> np.ndarray:
    return open_dataset(tau_dataset).fetch(np.arange(200))


@pytest.fixture
def start(tau_dataset: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a process that reads the dataset from the cache in `tmp_path`."""

    def starting(
        me: str = "me", other: str = "", fault: str = "", turns: int = 1, limit: int = 0
    ) -> subprocess.Popen[str]:
        words = [f"flaky://{tau_dataset}", tmp_path, me, other, limit]
        return subprocess.Popen(
            [sys.executable, "-c", READER.format(fault=fault, turns=turns), *map(str, words)],
            env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return starting


def expected(clips: np.ndarray, turns: int = 1) -> list[str]:
    from hashlib import sha256

    orders = [np.random.default_rng(turn).permutation(200) for turn in range(turns)]
    return [sha256(clips[order].tobytes()).hexdigest() for order in orders]


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out.split()


def used(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("[0-9a-f]*/*.tar*"))


def shards_of(dataset: Dataset, cache: Path) -> list[str]:
    """The shards that are there, by name."""
    return sorted(path.name for path in (cache / dataset.fingerprint).glob("*.tar*"))


# --- processes ----------------------------------------------------------------------------------------


def test_two_processes_fetch_every_shard_once(
    flaky: Any, start: Callable[..., Any], clips: np.ndarray, tau_dataset: Path
) -> None:
    """The first shard does not come to an end before both processes are about to read it.

    Each holds what it reads until both are done.
    """
    fault = 'if name.endswith("0.tar"): wait_for(folder / other)'
    processes = [start(me, other, fault) for me, other in (("one", "two"), ("two", "one"))]
    for process in processes:
        assert finish(process) == expected(clips)
    shards = [shard.name for shard in open_dataset(tau_dataset).manifest.shards]
    assert sorted(flaky.opened()) == sorted(shards)


def test_another_process_finishes_a_shard_just_before_it_is_begun(
    flaky: Any, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.remote.cache import open_and_flock

    dataset, other = open_dataset(url), open_dataset(url)

    def late(path: Path, *how: int) -> int | None:
        monkeypatch.setattr("shards.remote.cache.open_and_flock", open_and_flock)
        file = open_and_flock(path, *how)
        other.fetch([0])
        return file

    monkeypatch.setattr("shards.remote.cache.open_and_flock", late)
    assert (dataset.fetch([0]) == other.fetch([0])).all()
    assert flaky.opened() == ["train-000000.tar"] == shards_of(dataset, cache)


def test_another_process_removes_a_shard_just_before_it_is_held(
    flaky: Any, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was removed while it was opened would take room that nobody counts."""
    dataset, flock = open_dataset(url), fcntl.flock
    first = dataset.fetch([0])
    dataset.close()

    def late(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (cache / dataset.fingerprint / "train-000000.tar").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert (dataset.fetch([0]) == first).all()
    assert flaky.opened() == ["train-000000.tar"] * 2
    assert shards_of(dataset, cache) == ["train-000000.tar"]


def test_killed_in_the_middle_of_a_fetch(
    flaky: Any, start: Callable[..., Any], clips: np.ndarray, tmp_path: Path
) -> None:
    killed = start(fault='if name == "train-000002.tar": os.kill(os.getpid(), 9)')
    assert killed.wait(600) == -signal.SIGKILL
    killed.communicate()
    left = [path.name for path in sorted((tmp_path / "cache").glob("[0-9a-f]*/*.tar*"))]
    assert left == ["train-000000.tar", "train-000001.tar", "train-000002.tar.part"]
    assert finish(start()) == expected(clips)
    opened = flaky.opened()
    assert [name for name in set(opened) if opened.count(name) > 1] == ["train-000002.tar"]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_two_processes_in_a_cache_that_is_too_small(
    flaky: Any, start: Callable[..., Any], clips: np.ndarray, tau_dataset: Path, tmp_path: Path
) -> None:
    """Room for two shards of seven: each process needs one, and gets it."""
    limit = 2 * max(shard.bytes for shard in open_dataset(tau_dataset).manifest.shards)
    processes = [start(me, other, turns=3, limit=limit) for me, other in ("ab", "ba")]
    for process in processes:
        assert finish(process) == expected(clips, turns=3)
    assert 0 < used(tmp_path / "cache") <= limit


# --- eviction -----------------------------------------------------------------------------------------


def test_a_limit_below_the_dataset(
    flaky: Any, url: str, clips: np.ndarray, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    biggest = max(shard.bytes for shard in open_dataset(url).manifest.shards)
    most = 0

    def watched(name: str, block: bytes) -> bytes:
        nonlocal most
        most = max(most, used(cache))
        return block

    flaky.fault = watched
    limit = int(2.5 * biggest)
    dataset = open_dataset(url, cache_bytes=limit)
    assert f"more than {cache} may hold" in caplog.text
    for seed in range(3):
        ids = np.random.default_rng(seed).integers(0, 200, 50)
        assert (dataset.fetch(ids) == clips[ids]).all()
    assert biggest < most <= limit
    dataset.prefetch(np.arange(200))  # of no use here: it would push out what is about to be read
    assert len(flaky.opened()) > len(dataset.manifest.shards)


def first_clips(dataset: Dataset) -> list[int]:
    """The first row of every shard."""
    counts = [shard.count for shard in dataset.manifest.shards]
    return [0, *np.cumsum(counts)[:-1].tolist()]


def test_what_was_used_longest_ago_goes_first(url: str, cache: Path) -> None:
    sizes = [shard.bytes for shard in open_dataset(url).manifest.shards]
    dataset = open_dataset(url, cache_bytes=sum(sizes[:3]) + 1000)
    rows = first_clips(dataset)
    names = [shard.name for shard in dataset.manifest.shards]
    for shard in (0, 1, 2, 0, 3):
        dataset.fetch([rows[shard]])
    assert shards_of(dataset, cache) == sorted(names[i] for i in (0, 2, 3))


@pytest.fixture
def other_url(flaky: Any, tmp_path: Path, noise_folder: Callable[..., Path]) -> str:
    """Another dataset: 20 clips in one shard a split."""
    from shards.build.dataset import build_dataset
    from shards.build.plan import BuildOptions

    source = noise_folder(tmp_path / "noise")
    build_dataset(BuildOptions(kind="folder", source=source), tmp_path / "other", workers=1)
    return f"flaky://{tmp_path / 'other'}"


def test_other_datasets_go_first_unless_they_are_in_use(
    flaky: Any, url: str, other_url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = sum(shard.bytes for shard in open_dataset(url).manifest.shards)
    mine, other = open_dataset(url, cache_bytes=everything), open_dataset(other_url)
    rows = first_clips(mine)
    mine.fetch(rows[:-1])
    for _ in range(2):  # fetched, then found; used last, and left open
        other.close()
        other.fetch(np.arange(len(other)))
    before = shards_of(mine, cache), shards_of(other, cache)
    monkeypatch.setattr("shards.remote.cache.PATIENCE", 0.0)
    with pytest.raises(UserError, match=f"no room for the .*data.cache_bytes={everything}"):
        mine.fetch(rows[-1:])
    assert (shards_of(mine, cache), shards_of(other, cache)) == before
    assert len(before[0]) == len(rows) - 1
    mine.close()
    other.close()
    mine.fetch(rows[-1:])
    assert len(shards_of(mine, cache)) == len(rows)
    assert shards_of(other, cache) == []


def test_limits_and_disks_that_are_too_small(
    url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, clips: np.ndarray
) -> None:
    with pytest.raises(UserError, match=r"data\.cache_bytes=1000: is below the \d+ bytes of train"):
        open_dataset(url, cache_bytes=1000).fetch([0])
    allocate = os.posix_fallocate

    def small_disk(file: int, start: int, size: int) -> None:
        if used(cache) + size > 6_000_000:
            raise OSError(28, "No space left on device")
        allocate(file, start, size)

    monkeypatch.setattr("os.posix_fallocate", small_disk)
    monkeypatch.setattr("shards.remote.cache.PATIENCE", 0.0)
    dataset = open_dataset(url)
    with pytest.raises(UserError, match=r"no room for the \d+ bytes of .*the disk is full"):
        dataset.fetch(np.arange(200))  # holds on to all that it reads
    dataset.close()
    everything = sum(shard.bytes for shard in dataset.manifest.shards)
    free = SimpleNamespace(f_bavail=everything - used(cache) - 1, f_frsize=1)
    monkeypatch.setattr("os.statvfs", lambda path: free)
    assert (open_dataset(url).fetch(np.arange(200)) == clips).all()
    assert used(cache) <= 6_000_000
