"""Reading speed of batches: positioned reads, clips in memory, and webdataset, from the same shards.

    python benchmarks/reader.py                    # clips/s, one process, warm page cache
    python benchmarks/reader.py --encoding flac    # the same where clips have to be decoded
    python benchmarks/reader.py --rows 230350      # memory of a process that holds such an index

`--data DIR` keeps the synthetic dataset there and reuses it.
"""

import argparse
import io
import os
import platform
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from cpprune.data.memory import InMemoryClips, load_into_memory
from shards import open_dataset
from shards.audio.clips import encode
from shards.build.tar import END_OF_ARCHIVE, Record, write_record
from shards.manifest import (
    INDEX_NAME,
    INDEX_TYPES,
    MANIFEST_NAME,
    Manifest,
    Shard,
    sha256_of_file,
    write_index,
)
from shards.order import Ids, batch_ids, epoch_order, num_batches
from shards.split import Split

RATE = 32000
CLIPS_PER_SHARD = 4096
BATCH = 256


def make_dataset(
    folder: Path, clips: int, encoding: str = "wav", validation: int = 0, samples: int = RATE
) -> None:
    """Writes so many clips of noise; `validation` more are held out."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(-32768, 32768, 2 * samples, dtype=np.int16)
    columns: dict[str, list[Any]] = {name: [] for name in (*INDEX_TYPES, "device")}
    shards: list[Shard] = []
    starts = range(0, clips, CLIPS_PER_SHARD)
    parts = [("train", first, min(clips, first + CLIPS_PER_SHARD)) for first in starts]
    parts += [("val", clips, clips + validation)] if validation else []
    for number, (split, first, end) in enumerate(parts):
        name, offset = f"{split}-{number:06d}.tar", 0
        with (folder / name).open("wb") as file:
            for i in range(first, end):
                begin = 7 * i % samples
                payload = encode(noise[begin : begin + samples], RATE, encoding)
                key = f"clip-{i:08d}"
                record = write_record(file, offset, key, encoding, payload, {"label": i % 10})
                columns["key"].append(key)
                columns["recording"].append(f"barcelona-{i // 10}")
                columns["split"].append(split)
                columns["device"].append("abc"[i % 3])
                columns["label"].append(i % 10)
                columns["shard"].append(number)
                for field in Record._fields:
                    columns[field].append(getattr(record, field))
                offset += record.record_size
            file.write(END_OF_ARCHIVE)
        size = offset + len(END_OF_ARCHIVE)
        sha256 = sha256_of_file(folder / name)
        shards.append(Shard(name=name, split=split, count=end - first, bytes=size, sha256=sha256))
    write_index(folder / INDEX_NAME, columns, ("device",))
    manifest = Manifest(
        kind="audio",
        classes=tuple(str(i) for i in range(10)),
        sample_rate=RATE,
        shape=(samples,),
        dtype="int16",
        encoding=encoding,
        splits={
            name: {"count": sum(held.values()), "classes": {str(k): held[k] for k in range(10)}}
            for name in sorted({split for split, _, _ in parts})
            for held in [
                Counter(
                    label
                    for split, label in zip(columns["split"], columns["label"], strict=True)
                    if split == name
                )
            ]
        },
        groups=("device",),
        shards=tuple(shards),
        index={
            "name": INDEX_NAME,
            "sha256": sha256_of_file(folder / INDEX_NAME),
            "rows": len(columns["key"]),
        },
        rejected=None,
        source={"kind": "benchmark"},
    ).sealed()
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())


def warm(folder: Path) -> None:
    for shard in folder.glob("*.tar"):
        with shard.open("rb") as file:
            while file.read(1 << 24):
                pass


def say(what: str, clips: int, wall: float, cpu: float) -> None:
    speed = clips / wall
    gigabytes = speed * RATE * 2 / 1e9
    used = 1e6 * cpu / clips
    print(f"{what:40} {speed:10,.0f} clips/s  {gigabytes:6.2f} GB/s  {used:7.1f} µs of CPU a clip")


def timed(do: Callable[[], object]) -> tuple[float, float]:
    """Returns wall and CPU seconds; the latter do not depend on what else the machine does."""
    start, cpu = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - start, time.process_time() - cpu


def read_epoch(fetch: Callable[[Ids], object], clips: int, epoch: int) -> None:
    """Reads the batches of an epoch, in the order in which they are trained on."""
    order = epoch_order(clips, 0, epoch)
    for batch in range(num_batches(clips, BATCH)):
        fetch(batch_ids(order, batch, BATCH))


def read_webdataset(folder: Path, encoding: str) -> None:
    """Reads the plainest webdataset pipeline: samples as arrays, in tar order."""
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        decoded(sample[encoding], encoding)


def decoded(payload: bytes, encoding: str) -> NDArray[np.int16]:
    if encoding == "wav":
        return np.frombuffer(payload, dtype=np.int16, offset=44)
    samples: NDArray[np.int16] = soundfile.read(io.BytesIO(payload), dtype="int16")[0]
    return samples


def checksums(folder: Path, encoding: str, split: Split, loaded: InMemoryClips) -> set[int]:
    """Returns one checksum of all clips for each way, which does not depend on the order."""
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False)
    return {
        sum(zlib.crc32(decoded(sample[encoding], encoding).tobytes()) for sample in samples),
        sum(zlib.crc32(split.fetch([i]).tobytes()) for i in range(len(split))),
        sum(zlib.crc32(clip.numpy()) for clip in loaded.clips),
    }


def compare(folder: Path, encoding: str, rounds: int) -> None:
    split = open_dataset(folder).split("train")
    clips = len(split)
    loaded = InMemoryClips(torch.empty(0))

    def load() -> None:
        nonlocal loaded
        found = load_into_memory(open_dataset(folder), split.ids, "host", torch.device("cpu"))
        assert found is not None
        loaded = found

    say(
        "positioned reads, first touch (crc32)",
        clips,
        *timed(lambda: read_epoch(split.fetch, clips, 0)),
    )
    say("loading into memory (crc32)", clips, *timed(load))
    ways = {
        "positioned reads": lambda epoch: read_epoch(split.fetch, clips, epoch),
        "resident in host memory": lambda epoch: read_epoch(loaded.fetch, clips, epoch),
        "webdataset": lambda epoch: read_webdataset(folder, encoding),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for epoch in range(1, rounds + 1):
        for name, way in ways.items():
            found[name].append(timed(partial(way, epoch)))
            say(f"{name}, round {epoch}", clips, *found[name][-1])
    assert len(checksums(folder, encoding, split, loaded)) == 1, "not all read the same clips"
    for which, what in enumerate(("best wall time", "best CPU time")):
        reads, memory, other = (min(t[which] for t in times) for times in found.values())
        print(
            f"same clips in all; by {what} memory is {reads / memory:.1f} times as fast as positioned "
            f"reads, and those {other / reads:.1f} times as fast as webdataset"
        )


def memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def show_memory(folder: Path, rows: int) -> None:
    print(f"a process that imported torch {torch.__version__}: {memory_mib():8.1f} MiB")
    dataset = open_dataset(folder)
    split = dataset.split("train")
    print(f"with the index of {rows:,} rows open: {memory_mib():8.1f} MiB")
    for epoch in range(3):
        order = epoch_order(len(split), 0, epoch)
        for batch in range(num_batches(len(split), BATCH)):
            split.fetch(batch_ids(order, batch, BATCH))
        print(f"after epoch {epoch}: {memory_mib():8.1f} MiB")


def describe_machine() -> None:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pyarrow", "webdataset"))
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {model}, Python {platform.python_version()}, {versions}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Ways of reading beside each other, one process.")
    parser.add_argument("--data", type=Path, help="keep the dataset here and use it again")
    parser.add_argument("--clips", type=int, default=16384, help="one-second clips (default 16384)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoding", choices=("wav", "flac"), default="wav")
    parser.add_argument("--rows", type=int, help="show memory with an index of so many rows")
    arguments = parser.parse_args()
    describe_machine()
    folder = arguments.data or Path(tempfile.mkdtemp(prefix="reader-benchmark-"))
    try:
        if not (folder / MANIFEST_NAME).exists():
            # Of an index, the clips themselves may be short.
            samples = 320 if arguments.rows else RATE
            clips = arguments.rows or arguments.clips
            make_dataset(folder, clips, arguments.encoding, samples=samples)
        warm(folder)
        if arguments.rows:
            show_memory(folder, arguments.rows)
        else:
            compare(folder, arguments.encoding, arguments.rounds)
    finally:
        if arguments.data is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
