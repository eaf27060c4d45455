"""A made-up dataset in TAU's own folder layout, to try everything without the real one.

Ten scenes differ in the spectral envelope of their noise, its slow modulation, and the events in it
(hums, chords, clicks, bursts, sweeps). All of that overlaps between scenes and varies with city,
location and clip, and every device filters it, so that a network has something to learn and
something to get wrong. The scenes and devices are always the same; the seed decides the locations
and clips.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.files.atomic import writing
from shards.files.ownership import Kind, claim, remove
from shards.progress import progress
from shards.sources.scenes import CITIES, DEVICES, RATE, render
from shards.sources.tau2022 import LABELS, META, TEST, TRAIN
from shards.workers import cpu_count, run_jobs

FEWEST_CLIPS = 200
TEST_SHARE = 0.25
# The share of a device in training, as in TAU; the rest is divided among b, c and s1 to s3.
MAIN_DEVICE_SHARE = 0.732
TRAIN_DEVICES = DEVICES[:6]
LONGEST_SEGMENT = 10


FOLD_TEST = "evaluation_setup/fold1_test.csv"
LISTS = (META, TRAIN, TEST, FOLD_TEST)

# Nothing marks it: it is written into a new or empty folder only.
SYNTHETIC = Kind(name="a new folder", parts=(), made=lambda folder: False)


@dataclass(frozen=True, slots=True)
class Segment:
    """Up to ten clips that follow one another at one place."""

    scene: int
    city: int
    location: int
    number: int
    split: str
    devices: tuple[int, ...]

    @property
    def identifier(self) -> str:
        """City and location, as in `meta.csv`."""
        return f"{CITIES[self.city]}-{self.location}"

    def names(self) -> list[str]:
        """Returns the file names of the clips."""
        stem = f"audio/{LABELS[self.scene]}-{self.identifier}-{self.number}"
        return [f"{stem}-{i}-{DEVICES[device]}.wav" for i, device in enumerate(self.devices)]


def synthesise(out: str | Path, clips: int, seed: int = 0, workers: int | None = None) -> None:
    """Writes `clips` one-second files (44.1 kHz, 24 bit, mono) and TAU's lists.

    The same seed and number give the same bytes, whatever the number of workers.

    Raises:
        UserError: if there are too few clips to have every scene in every split, or `out` holds
            something.
    """
    folder = Path(out).absolute()
    if clips < FEWEST_CLIPS:
        raise UserError(f"--clips is {clips}; use {FEWEST_CLIPS} or more")
    if seed < 0:
        raise UserError(f"--seed is {seed}; use a whole number, 0 or more")
    claim(folder, SYNTHETIC, "--out")
    segments = lay_out(clips)
    jobs = [(folder, seed, part) for part in _parts(segments, 20)]
    try:
        with writing(folder, "--out"):
            (folder / "audio").mkdir(parents=True)
            with progress("Making clips", clips) as advance:
                for number, _ in run_jobs(_write_segments, jobs, workers or cpu_count()):
                    advance(sum(len(segment.devices) for segment in jobs[number][2]))
            _write_lists(folder, segments)
    except BaseException:
        remove_clips(folder)  # half of it would be in the way of the next
        raise


def remove_clips(folder: Path) -> None:
    """Removes the clips and lists that `synthesise` has written into a folder of ours."""
    remove(folder, ("audio/*.wav", *LISTS))


def lay_out(clips: int) -> list[Segment]:
    """Returns the segments of a dataset of that many clips: places, devices and splits."""
    segments: list[Segment] = []
    for scene in range(len(LABELS)):
        of_scene = clips // len(LABELS) + (scene < clips % len(LABELS))
        longest = min(LONGEST_SEGMENT, max(1, of_scene // 30))
        of_test = round(TEST_SHARE * of_scene)
        first_place = 0
        for split, count in (("train", of_scene - of_test), ("test", of_test)):
            number_of = -(-count // longest)
            places = min(40, max(2, number_of // 2))
            for i in range(number_of):
                place = first_place + i % places
                length = min(longest, count - i * longest)
                number = len(segments)
                segments.append(
                    Segment(
                        scene=scene,
                        city=(place + 3 * scene) % len(CITIES),
                        location=100 * scene + place,
                        number=number,
                        split=split,
                        devices=_devices(number, length, split),
                    )
                )
            first_place += places
    return segments


def _devices(number: int, length: int, split: str) -> tuple[int, ...]:
    if split == "test":
        # Every second of a test segment comes from another device.
        return tuple((number + i) % len(DEVICES) for i in range(length))
    # The golden ratio spreads any stretch of numbers evenly over [0, 1).
    place = number * 0.6180339887498949 % 1.0
    if place < MAIN_DEVICE_SHARE:
        return (0,) * length
    others = len(TRAIN_DEVICES) - 1
    return (1 + int((place - MAIN_DEVICE_SHARE) / (1 - MAIN_DEVICE_SHARE) * others),) * length


def _parts(segments: Sequence[Segment], size: int) -> Iterator[Sequence[Segment]]:
    for first in range(0, len(segments), size):
        yield segments[first : first + size]


def _write_segments(job: tuple[Path, int, Sequence[Segment]]) -> None:
    folder, seed, segments = job
    for segment in segments:
        waves_NT = render(
            seed, segment.scene, segment.city, segment.location, segment.number, segment.devices
        )
        for name, wave_T in zip(segment.names(), waves_NT, strict=True):
            (folder / name).write_bytes(_wav24(wave_T))


def _wav24(wave_T: NDArray[np.float32]) -> bytes:
    """Returns samples in [-1, 1) as a mono 24-bit WAV file."""
    size = 3 * len(wave_T)
    words = np.rint(np.clip(wave_T, -1, 1 - 2.0**-23) * np.float32(2**23)).astype("<i4")
    samples: bytes = words.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    header = b"RIFF%sWAVEfmt " % (36 + size).to_bytes(4, "little")
    for value, width in ((16, 4), (1, 2), (1, 2), (RATE, 4), (3 * RATE, 4), (3, 2), (24, 2)):
        header += value.to_bytes(width, "little")
    return header + b"data" + size.to_bytes(4, "little") + samples


def _write_lists(folder: Path, segments: Sequence[Segment]) -> None:
    meta = ["filename\tscene_label\tidentifier\tsource_label"]
    lines = {"train": ["filename\tscene_label"], "test": ["filename\tscene_label"]}
    for segment in segments:
        scene = LABELS[segment.scene]
        for name, device in zip(segment.names(), segment.devices, strict=True):
            meta.append(f"{name}\t{scene}\t{segment.identifier}\t{DEVICES[device]}")
            lines[segment.split].append(f"{name}\t{scene}")
    names = ["filename", *(line.partition("\t")[0] for line in lines["test"][1:])]
    lists = {
        META: meta,
        TRAIN: lines["train"],
        TEST: lines["test"],
        FOLD_TEST: names,
    }
    for name, rows in lists.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(rows) + "\n")
