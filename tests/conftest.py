"""What the tests of whole commands share: the command line, and small data and models made once."""

import gc
import gzip
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before torch is imported anywhere: one thread a process, here and in every process started here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("run_folder")  # so that what differs between two runs is shown

# A network of 2,650 parameters, and no warm-up, so that a few steps on a few clips do something.
TINY = ["--model.widths", "[6, 8, 10]", "--train.batch_size", "16"]
TINY += ["--optim.schedule", "constant", "--optim.lr", "1e-2", "--optim.weight_decay", "0"]


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU from all but `pytest -m gpu`: what other tests count and compare is a CPU's."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and all that came out of it."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output; anything else there fails."""
        assert self.out, self.err
        found = json.loads(self.out)
        assert isinstance(found, dict)
        assert self.out.count("\n") == 1
        return found


def run_command(*arguments: object) -> int:
    """Run a command in this process and return its exit status."""
    from cpprune.cli.main import main

    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


@pytest.fixture(scope="session")
def call() -> Callable[..., int]:
    """Runs `cpprune ARGUMENTS…` in this process and returns its exit status."""
    return run_command


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `cpprune ARGUMENTS…` in this process; says how it ended and what it printed."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        status = run_command(*arguments)
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def refused(cli: Callable[..., Outcome]) -> Callable[..., str]:
    """Runs a command that has to end with status 2 and one line that says all of `names`."""

    def run(*arguments: object, names: Sequence[object]) -> str:
        outcome = cli(*arguments)
        lines = outcome.err.splitlines()
        assert outcome.status == 2, outcome.err
        assert len(lines) == 1, outcome.err
        assert re.match(r"cpprune: error( \(rank \w+\))?: ", lines[0])
        for name in names:
            assert str(name) in lines[0]
        assert outcome.out == ""
        return lines[0]

    return run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written by mistake is written where nobody minds."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def hashes() -> Callable[[Path], dict[str, str]]:
    """Returns every file below a folder with the SHA-256 of its bytes."""

    def of(folder: Path) -> dict[str, str]:
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return of


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Settings of a network and training that take no time."""
    return list(TINY)


@pytest.fixture(scope="session")
def libraries() -> None:
    """Imports what a run needs, and takes it out of the garbage collector's sight.

    Accelerate collects garbage whenever it wraps a network: half of the time of a tiny run.
    """
    import accelerate
    import jsonargparse
    import torch_pruning
    import torchinfo

    import cpprune.training.loop

    assert all((accelerate, jsonargparse, torch_pruning, torchinfo, cpprune.training.loop))
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def scenes_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 made-up clips in TAU's own folder layout. Tests must not change it."""
    from shards.sources.synthetic import synthesise

    folder = tmp_path_factory.mktemp("scenes") / "source"
    synthesise(folder, 200, seed=5, workers=1)
    return folder


@pytest.fixture(scope="session")
def scenes(libraries: None, scenes_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a dataset: 128 clips for training, 22 to validate, 50 to test."""
    from shards.build.dataset import build_dataset
    from shards.build.plan import BuildOptions

    folder = tmp_path_factory.mktemp("scenes") / "dataset"
    build_dataset(BuildOptions(kind="tau2022", source=scenes_source), folder, workers=1)
    return folder


def train_tiny(scenes: Path, folder: Path) -> int:
    """Train the tiny network for four epochs and return the exit status."""
    settings = [*TINY, "--data.path", scenes, "--train.epochs", 4]
    return run_command("train", *settings, "--run", folder)


@pytest.fixture(scope="session")
def tiny_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the tiny network. Tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train_tiny(scenes, folder) == 0
    return folder


@pytest.fixture(scope="session")
def quantised_run(tiny_run: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, its network quantised with the ranges of some clips. Tests must not change it."""
    import torch

    import shards
    from cpprune.models import artifact
    from cpprune.models.quantized import quantize

    run = tmp_path_factory.mktemp("quantised") / "run"
    shutil.copytree(tiny_run, run)
    model = artifact.load(run / "model")
    quantize(model.network, model.input_shape)
    clips = shards.open_dataset(scenes).split("train").fetch(np.arange(32))
    with torch.no_grad():
        model.train()(torch.from_numpy(clips))
    artifact.save(model.eval(), run / "model")
    return run


@contextmanager
def counted_reads(number: int, do: Callable[[], object]) -> Iterator[None]:
    """Do something when a batch is read for the n-th time, from shards or from memory."""
    from cpprune.data.memory import InMemoryClips
    from shards.reader import Dataset

    calls = 0

    def counted(fetch: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                do()
            return fetch(*arguments)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for kind in (Dataset, InMemoryClips):
            patch.setattr(kind, "fetch", counted(kind.fetch))
        yield
    assert calls >= number, f"the run was over after {calls} reads"


@pytest.fixture(scope="session")
def at_read() -> Callable[[int, Callable[[], object]], AbstractContextManager[None]]:
    """Does something when a batch is read for the n-th time in this context."""
    return counted_reads


@pytest.fixture(scope="session")
def stop_at() -> Callable[[int], AbstractContextManager[None]]:
    """Presses Ctrl-C, so to speak, when a batch is read for the n-th time in this context."""

    def press() -> None:
        raise KeyboardInterrupt

    return lambda number: counted_reads(number, press)


@pytest.fixture(scope="session")
def stopped_run(
    scenes: Path, stop_at: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of `tiny_run`'s twin, stopped in its third epoch. Tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with stop_at(22):
        assert train_tiny(scenes, folder) == 130
    return folder


@pytest.fixture(scope="session")
def big_model(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of CP-ResNet "big", trained on 32 clips for two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "big"
    settings = ["--train.batch_size", 8, "--train.epochs", 2, "--data.train_fraction", 0.25]
    status = run_command(
        "train", *settings, "--optim.schedule", "constant", "--data.path", scenes, "--run", folder
    )
    assert status == 0
    return folder / "model"


@pytest.fixture(scope="session")
def noise_folder() -> Callable[..., Path]:
    """Makes CLASS/NUMBER.wav in a folder: one second of noise each."""
    import soundfile

    def make(folder: Path, classes: Sequence[str] = ("hum", "hiss"), files: int = 10) -> Path:
        rng = np.random.default_rng(0)
        for name in classes:
            (folder / name).mkdir(parents=True)
            for number in range(files):
                wave = rng.normal(0, 0.1, 32_000)
                soundfile.write(folder / name / f"{number}.wav", wave, 32_000, subtype="PCM_16")
        return folder

    return make


@pytest.fixture(scope="session")
def write_mnist() -> Callable[..., None]:
    """Writes images [N, 28, 28] and labels [N], both uint8, as two of MNIST's files."""

    def write(
        folder: Path, part: str, images: np.ndarray, labels: np.ndarray, packed: bool = True
    ) -> None:
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            data = head + array.tobytes()
            name = f"{part}-{kind}-ubyte"
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)

    return write


@pytest.fixture(scope="session")
def digits(
    libraries: None, write_mnist: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A dataset of made-up digits, 50 of them to train on."""
    folder = tmp_path_factory.mktemp("digits")
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        write_mnist(folder, part, images, (np.arange(count) % 10).astype(np.uint8))
    words = ["shards", "build", "mnist", "--source", folder, "--out", folder / "dataset"]
    assert run_command(*words) == 0
    return folder / "dataset"


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Returns a port that nobody listens on."""

    def find() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return int(listener.getsockname()[1])

    return find


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of `flaky://`, without faults yet; an empty cache, and no pauses between tries."""
    from flaky_files import FlakyFileSystem

    (tmp_path / "opened").touch()
    monkeypatch.setattr(FlakyFileSystem, "log", tmp_path / "opened")
    # Noted, so that it is undone when a test sets another.
    monkeypatch.setattr(FlakyFileSystem, "fault", FlakyFileSystem.fault)
    monkeypatch.setattr("shards.remote.transfer.RETRY_DELAYS", (0.0, 0.0))
    monkeypatch.setenv("CPPRUNE_CACHE", str(tmp_path / "cache"))
    return FlakyFileSystem
