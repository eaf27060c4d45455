"""Small datasets, made once."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from web_server import Server, serving

from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions


@pytest.fixture(scope="session")
def tau_options(scenes_source: Path) -> BuildOptions:
    return BuildOptions(kind="tau2022", source=scenes_source, shard_size=40)


@pytest.fixture(scope="session")
def tau_dataset(tau_options: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 200 made-up clips in several shards a split. Tests must not change it."""
    folder = tmp_path_factory.mktemp("tau") / "dataset"
    build_dataset(tau_options, folder, workers=1)
    return folder


@pytest.fixture(scope="session")
def make_audio() -> Callable[..., Path]:
    def make(path: Path, seconds: float = 1.0, rate: int = 8000, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Copies are kept together: other names, other sounds.
        name = zlib.crc32("/".join(path.parts[-3:]).encode())
        wave = np.random.default_rng([seed, name]).uniform(-0.5, 0.5, round(seconds * rate))
        soundfile.write(path, wave, rate, subtype="PCM_16" if path.suffix == ".wav" else None)
        return path

    return make


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server on this machine, and no pauses between tries."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("shards.remote.transfer.RETRY_DELAYS", (0.0, 0.0))
    with serving() as started:
        yield started
