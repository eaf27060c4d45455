"""Training, evaluation and resumption over a URL."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from run_folder import assert_same_run

from cpprune.training.step import TrainingStep
from shards import open_dataset
from shards.manifest import read_index
from shards.order import epoch_order


@pytest.fixture(scope="module")
def sharded(libraries: None, scenes_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 clips for training in shards of 20, 22 to validate, 50 to test."""
    from shards.build.dataset import build_dataset
    from shards.build.plan import BuildOptions

    folder = tmp_path_factory.mktemp("sharded") / "dataset"
    options = BuildOptions(kind="tau2022", source=scenes_source, shard_size=20)
    build_dataset(options, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def settings(tiny: list[str]) -> list[Any]:
    """Batches of 4 clips, which cannot touch all of the shards, six or more."""
    return ["train", *tiny, "--train.batch_size", 4, "--train.epochs", 2]


@pytest.fixture(scope="module")
def local_run(
    call: Callable[..., int],
    settings: list[Any],
    sharded: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The same training from the local folder."""
    run = tmp_path_factory.mktemp("runs") / "local"
    assert call(*settings, "--data.path", sharded, "--run", run) == 0
    return run


@pytest.fixture
def url(flaky: Any, sharded: Path) -> str:
    return f"flaky://{sharded}"


@pytest.mark.slow
def test_training_starts_before_all_shards_are_there(
    flaky: Any,
    url: str,
    sharded: Path,
    local_run: Path,
    call: Callable[..., int],
    settings: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shard that is needed last does not come before a step was taken."""
    dataset = open_dataset(sharded)
    train = dataset.split("train")
    rows = train.ids[epoch_order(len(train), 0, 0)]
    shard_of = read_index(sharded / "index.parquet", ("shard",)).numbers["shard"]
    number = list(dict.fromkeys(shard_of[rows].tolist()))[-1]
    assert number not in shard_of[rows[:4]]
    last = dataset.manifest.shards[number].name
    stepped, waited = threading.Event(), []

    def withheld(name: str, block: bytes) -> bytes:
        if name == last:
            waited.append(stepped.wait(600))
        return block

    step = TrainingStep.__call__

    def noted(self: TrainingStep, *arguments: Any) -> Any:
        loss = step(self, *arguments)
        stepped.set()
        return loss

    flaky.fault = withheld
    monkeypatch.setattr(TrainingStep, "__call__", noted)
    run = tmp_path / "run"
    read = ["--data.in_memory", "off", "--data.path", url]
    assert call(*settings, *read, "--run", run) == 0
    assert waited
    assert all(waited)
    assert_same_run(run, local_run)
    opened = flaky.opened()
    assert len(opened) == len(set(opened))
    assert not [name for name in opened if name.startswith("test")]


@pytest.mark.slow
def test_a_run_goes_on_from_another_place_of_the_dataset(
    url: str,
    sharded: Path,
    local_run: Path,
    call: Callable[..., int],
    stop_at: Callable[..., Any],
    settings: list[Any],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with stop_at(40):
        assert call(*settings, "--data.path", sharded, "--run", run) == 130
    again = ["--data.path", url, "--data.cache", tmp_path / "elsewhere", "--resume", "must"]
    assert call(*settings, *again, "--data.cache_bytes", 3_000_000, "--run", run) == 0
    assert_same_run(run, local_run)
    assert list((tmp_path / "elsewhere").rglob("train-*.tar"))
    assert not (tmp_path / "cache").exists()


def test_resident_clips_are_fetched(
    url: str, local_run: Path, call: Callable[..., int], settings: list[Any], tmp_path: Path
) -> None:
    more = ["--data.in_memory", "host", "--data.path", url, "--run", tmp_path / "run"]
    assert call(*settings, *more) == 0
    assert_same_run(tmp_path / "run", local_run)


def test_evaluation_over_a_url(
    flaky: Any, url: str, sharded: Path, local_run: Path, cli: Callable[..., Any]
) -> None:
    command = ["evaluate", local_run / "model", "--json", "--data"]
    assert cli(*command, url).json == cli(*command, sharded).json
    assert {name.split("-")[0] for name in flaky.opened()} == {"test"}


def test_a_damaged_shard_ends_the_run(
    flaky: Any,
    url: str,
    sharded: Path,
    cli: Callable[..., Any],
    settings: list[Any],
    tmp_path: Path,
) -> None:
    damaged = "train-000003.tar"

    def spoiled(name: str, block: bytes) -> bytes:
        return bytes([block[0] ^ 1]) + block[1:] if name == damaged and block else block

    flaky.fault = spoiled
    expected = next(s for s in open_dataset(sharded).manifest.shards if s.name == damaged).sha256
    more = ["--data.path", url, "--data.in_memory", "host", "--run", tmp_path / "run"]
    outcome = cli(*settings, *more)
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert all(part in last for part in (f"{url}/{damaged}", expected, "3 times"))
    assert "Traceback" not in outcome.err
    assert not list((tmp_path / "cache").glob(f"[0-9a-f]*/{damaged}"))


def test_mistakes_end_with_one_line(
    url: str, refused: Callable[..., str], settings: list[Any], tmp_path: Path, tiny_run: Path
) -> None:
    run = ["--run", tmp_path / "run"]
    names = ["flaky:///nowhere/dataset.json", "does not exist"]
    refused(*settings, "--data.path", "flaky:///nowhere", *run, names=names)
    refused("evaluate", tiny_run / "model", "--data", "flaky:///nowhere", names=names)
    refused(*settings, "--data.path", "nope://a/b", *run, names=["nope://a/b", "s3://"])
    small = ["--data.path", url, "--data.cache_bytes", -1]
    refused(*settings, *small, *run, names=["data.cache_bytes=-1"])


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def web(sharded: Path) -> Any:
    """The address of a web server that has the dataset."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=sharded)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_training_over_http(
    web: str, settings: list[Any], local_run: Path, tmp_path: Path
) -> None:
    words = [*settings, "--data.path", web, "--run", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "cpprune", *map(str, words)],
        env={**os.environ, "CPPRUNE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", local_run)
    assert list((tmp_path / "cache").rglob("*.tar"))
    words = ["shards", "verify", f"{web}/nothing/here"]
    done = subprocess.run([sys.executable, "-m", "cpprune", *words], capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{web}/nothing/here" in line
