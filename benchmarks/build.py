"""How fast shards are built, beside what the cores need to decode the clips and the disk to take them.

    python benchmarks/build.py                    # 44.1 kHz, 24 bit, as TAU has it; all cores
    python benchmarks/build.py --clips 8192 --workers 1 --rounds 5

Decoding alone and writing alone take turns with the build, in as many processes. The limit is the slower
of the two. CPU seconds, of all processes, tell how much work the build adds to decoding; they do not
depend on what else the machine does.
"""

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from shards.audio.load import load
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions
from shards.workers import cpu_count, run_jobs

SOURCE_RATE, RATE = 44_100, 32_000
CLASSES = 10
BLOCK = 1 << 20


def make_source(folder: Path, clips: int) -> None:
    """Writes one-second clips of noise, one folder a class."""
    rng = np.random.default_rng(0)
    for number in range(clips):
        path = folder / f"class-{number % CLASSES}" / f"{number:06d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, SOURCE_RATE), SOURCE_RATE, subtype="PCM_24")


def decode(files: list[Path]) -> int:
    return sum(len(load(file, RATE).samples) for file in files)


def write(job: tuple[Path, int]) -> None:
    path, size = job
    block = bytes(os.urandom(BLOCK))
    with path.open("wb") as file:
        for first in range(0, size, BLOCK):
            file.write(block[: size - first])
        file.flush()
        os.fsync(file.fileno())


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of those that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(do: Callable[[], object]) -> tuple[float, float]:
    """Returns wall and CPU seconds."""
    start, cpu = time.perf_counter(), cpu_seconds()
    do()
    return time.perf_counter() - start, cpu_seconds() - cpu


def rounds_of(folder: Path, clips: int, workers: int, rounds: int) -> dict[str, list[float]]:
    """Returns wall seconds of each way, and CPU seconds of decoding and building, by round."""
    source, out, scratch = folder / "source", folder / "dataset", folder / "scratch"
    files = sorted(source.glob("*/*.wav"))
    shard_size = max(1, clips // (4 * workers))
    options = BuildOptions(kind="folder", source=source, shard_size=shard_size)
    parts = [files[first : first + shard_size] for first in range(0, clips, shard_size)]
    names = ("decode", "write", "build", "decode cpu", "build cpu")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        wall, cpu = timed(lambda: list(run_jobs(decode, parts, workers)))
        found["decode"].append(wall)
        found["decode cpu"].append(cpu)
        wall, cpu = timed(lambda: build_dataset(options, out, workers=workers))
        found["build"].append(wall)
        found["build cpu"].append(cpu)
        sizes = [path.stat().st_size for path in sorted(out.glob("*.tar"))]
        shutil.rmtree(out)
        scratch.mkdir()
        jobs = [(scratch / str(number), size) for number, size in enumerate(sizes)]
        found["write"].append(timed(partial(list, run_jobs(write, jobs, workers)))[0])
        shutil.rmtree(scratch)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Building shards beside its limits.")
    parser.add_argument("--clips", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()
    print(f"{cpu_count()} cores, {arguments.workers} process(es), {arguments.clips:,} clips")
    folder = Path(tempfile.mkdtemp(prefix="build-benchmark-", dir=arguments.folder))
    try:
        make_source(folder / "source", arguments.clips)
        found = rounds_of(folder, arguments.clips, arguments.workers, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    for name in ("decode", "write", "build"):
        speed = arguments.clips / min(found[name])
        print(f"{name:8} {speed:10,.0f} clips/s  {speed * 2 * RATE / 1e9:6.3f} GB/s of shards")
    walls = zip(found["build"], found["decode"], found["write"], strict=True)
    ratio = statistics.median(build / max(limits) for build, *limits in walls)
    cpus = zip(found["build cpu"], found["decode cpu"], strict=True)
    cpu_ratio = statistics.median(build / decoding for build, decoding in cpus)
    print(
        f"a build takes {ratio:.2f} times its limit and {cpu_ratio:.2f} times the CPU seconds of "
        f"decoding alone (medians of {arguments.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
