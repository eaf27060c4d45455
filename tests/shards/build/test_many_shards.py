"""More shards than a process may have files open, and reads that bring less than they should."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import UserError, open_dataset
from shards.audio.clips import encode
from shards.build.tar import END_OF_ARCHIVE, write_record
from shards.manifest import INDEX_TYPES, Manifest, Shard, sha256_of_file, write_index

SHARDS, CLIPS = 3_000, 4_100
SAMPLES = 80

READER = """
import resource, sys, hashlib
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from shards import open_dataset
import torch
from cpprune.data.config import DataConfig
from cpprune.data.loader import TrainingLoader

dataset = open_dataset(sys.argv[1])
ids = np.random.default_rng(0).permutation(len(dataset))[:4096]
for _ in range(2):
    print(hashlib.sha256(dataset.fetch(ids).tobytes()).hexdigest())
batches = TrainingLoader(
    dataset, DataConfig(workers=1, in_memory="off"), 4096, 0, rank=0, world=1, device=torch.device("cpu")
)
for batch in batches.epoch(0):
    print(int((batch.clips.numpy() == dataset.fetch(batch.ids)).all()))
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 shards of one clip or two, the last one for validation."""
    folder = tmp_path_factory.mktemp("many") / "dataset"
    folder.mkdir()
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_TYPES}
    shards = []
    rng = np.random.default_rng(0)
    for number in range(SHARDS):
        split = "val" if number == SHARDS - 1 else "train"
        path, offset, count = folder / f"{split}-{number:06d}.tar", 0, 0
        with path.open("wb") as file:
            for clip in range(number, CLIPS, SHARDS):
                wave = rng.integers(-32768, 32768, SAMPLES, dtype=np.int16)
                key = f"clip-{clip}"
                payload = encode(wave, 8000, "wav")
                record = write_record(file, offset, key, "wav", payload, {"label": 0})
                row = {"key": key, "split": split, "shard": number, "label": 0, "recording": key}
                for name, value in {**row, **record._asdict()}.items():
                    columns[name].append(value)
                offset += record.record_size
                count += 1
            file.write(END_OF_ARCHIVE)
        size = path.stat().st_size
        sha256 = sha256_of_file(path)
        shards.append(Shard(name=path.name, split=split, count=count, bytes=size, sha256=sha256))
    index = folder / "index.parquet"
    write_index(index, columns, ())
    counts = {name: columns["split"].count(name) for name in ("train", "val")}
    manifest = Manifest(
        kind="audio",
        classes=("hum",),
        sample_rate=8000,
        shape=(SAMPLES,),
        dtype="int16",
        encoding="wav",
        groups=(),
        shards=tuple(shards),
        splits={name: {"count": n, "classes": {"hum": n}} for name, n in counts.items()},
        index={"name": index.name, "sha256": sha256_of_file(index), "rows": CLIPS},
        rejected=None,
        source={"kind": "folder"},
    ).sealed()
    (folder / "dataset.json").write_bytes(manifest.to_bytes())
    return folder


def test_a_batch_over_more_shards_than_files_may_be_open(many: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READER, many], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    one, two, *same = done.stdout.split()
    assert one == two
    assert set(same) == {"1"}


@pytest.mark.parametrize("most", [1, 3])
def test_the_clips_are_the_same_however_few_may_be_open(
    many: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.random.default_rng(0).integers(0, CLIPS, 300)
    dataset = open_dataset(many)
    expected = dataset.fetch(ids)
    dataset.close()
    monkeypatch.setattr("shards.reader.max_open_shards", lambda: most)
    for order in (slice(None), slice(None, None, -1), slice(5)):
        assert (dataset.fetch(ids[order]) == expected[order]).all()
        assert len(dataset._open._files) == most
    dataset.close()


@pytest.fixture(params=["wav", "flac"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path, make_audio: Callable[..., Path]) -> Any:
    from shards.build.dataset import build_dataset
    from shards.build.plan import BuildOptions

    for name in ("owl", "wren"):
        for i in range(5):
            make_audio(tmp_path / "s" / name / f"{i}.wav", seconds=0.1, seed=i)
    options = BuildOptions(
        kind="folder",
        source=tmp_path / "s",
        seconds=0.1,
        sample_rate=8000,
        encoding=request.param,
    )
    build_dataset(options, tmp_path / "d", workers=1)
    return open_dataset(tmp_path / "d")


def test_a_short_read_is_no_damage(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dataset.fetch(np.arange(10))
    preadv = os.preadv

    def short(file: int, buffers: Sequence[Any], offset: int) -> int:
        """Seven bytes at most, as from a network file system."""
        first = memoryview(next(buffer for buffer in buffers if len(buffer)))
        return preadv(file, [first[:7]], offset)

    def short_pread(file: int, size: int, offset: int, pread: Any = os.pread) -> bytes:
        return bytes(pread(file, min(size, 7), offset))

    monkeypatch.setattr(os, "preadv", short)
    monkeypatch.setattr(os, "pread", short_pread)
    assert (open_dataset(dataset.path).fetch(np.arange(10)) == expected).all()


def test_a_disk_that_fails_is_named(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(UserError, match=r"tar: sample .* cannot be read \(Input/output error\)"):
        dataset.fetch([0])
