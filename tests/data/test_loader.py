"""Batches: which clips they hold, on any number of ranks, from any place, by any way of reading."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import shards
from cpprune.data.config import DataConfig
from cpprune.data.loader import Batch, TrainingLoader, training_positions
from shards import Dataset, UserError
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions
from shards.order import epoch_order

RATE = 8000
CLIP = 400
CLASSES = ("bus", "metro", "tram")
CPU = torch.device("cpu")


def build(folder: Path, classes: tuple[str, ...] = CLASSES, **options: Any) -> Path:
    """A dataset of recordings of one to six clips; some lists are longer than others."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        for recording in range(9 + number):
            path = folder / "source" / name / f"{recording}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            length = CLIP * int(rng.integers(1, 7))
            soundfile.write(path, rng.uniform(-0.5, 0.5, length), RATE, subtype="PCM_16")
    settings: dict[str, Any] = {"seconds": CLIP / RATE, "sample_rate": RATE, "shard_size": 16}
    choice = BuildOptions(kind="folder", source=folder / "source", **(settings | options))
    build_dataset(choice, folder / "dataset", workers=1)
    return folder / "dataset"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("data"))


@pytest.fixture
def dataset(folder: Path) -> Iterator[Dataset]:
    opened = shards.open_dataset(folder)
    yield opened
    opened.close()


def batches(
    dataset: Dataset,
    *,
    size: int = 7,
    rank: int = 0,
    world: int = 1,
    ids_file: Path | None = None,
    **config: Any,
) -> TrainingLoader:
    choice = DataConfig(**({"in_memory": "off"} | config))
    return TrainingLoader(
        dataset, choice, size, 3, rank=rank, world=world, device=CPU, ids_file=ids_file
    )


def same(found: list[Batch], expected: list[Batch]) -> bool:
    return len(found) == len(expected) and all(
        a.number == b.number
        and (a.ids == b.ids).all()
        and (a.start, a.stop) == (b.start, b.stop)
        and torch.equal(a.clips, b.clips)
        for a, b in zip(found, expected, strict=True)
    )


def test_parts_of_the_training_split_are_nested(dataset: Dataset) -> None:
    split = dataset.split("train")
    recording = split.column("recording")
    assert len(split) > 2 * len(set(recording))
    longest = max(np.unique(recording, return_counts=True)[1])
    before: set[int] = set()
    for fraction in (1e-9, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0):
        positions = training_positions(split, fraction)
        assert positions.dtype == np.int64
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert before <= set(positions.tolist())
        before = set(positions.tolist())
        # Whole recordings, and no more of them than it takes.
        assert not {recording[i] for i in before} & {
            recording[i] for i in range(len(split)) if i not in before
        }
        assert fraction * len(split) <= len(before) < fraction * len(split) + longest
    assert len(before) == len(split)


def test_a_part_is_the_same_every_time_and_of_several_classes(dataset: Dataset) -> None:
    split = dataset.split("train")
    torch.manual_seed(1)
    first = training_positions(split, 0.5)
    torch.manual_seed(2)
    assert (training_positions(split, 0.5) == first).all()
    assert len(np.unique(split.labels[first])) == 3


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("size", [7, 16, 1000])
def test_global_batches_are_slices_of_the_order(
    size: int, fraction: float, dataset: Dataset
) -> None:
    split = dataset.split("train")
    rows = split.ids[training_positions(split, fraction)]
    source = batches(dataset, size=size, train_fraction=fraction)
    assert source.clips == len(rows)
    assert len(source) == -(-len(rows) // size)
    seen = []
    for epoch in (0, 1):
        order = epoch_order(len(rows), 3, epoch)
        found = list(source.epoch(epoch))
        assert [batch.number for batch in found] == list(range(len(source)))
        for batch in found:
            expected = rows[order[batch.number * size : (batch.number + 1) * size]]
            assert (batch.ids == expected).all()
            assert (batch.start, batch.stop) == (0, len(expected))
            assert batch.clips.dtype == torch.int16
            assert (batch.clips.numpy() == dataset.fetch(expected)).all()
        seen.append(np.concatenate([batch.ids for batch in found]))
        assert sorted(seen[-1]) == sorted(rows)
    assert (seen[0] != seen[1]).any()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_each_batch_in_order(world: int, dataset: Dataset) -> None:
    clips = dataset.splits["train"]
    size = next(s for s in range(6, 20) if clips % s == 2)  # the last has fewer clips than ranks
    whole = list(batches(dataset, size=size).epoch(4))
    parts = [
        list(batches(dataset, size=size, rank=rank, world=world).epoch(4)) for rank in range(world)
    ]
    for number, batch in enumerate(whole):
        of_ranks = [part[number] for part in parts]
        assert all((own.ids == batch.ids).all() for own in of_ranks)
        assert torch.equal(torch.cat([own.clips for own in of_ranks]), batch.clips)
        places = [i for own in of_ranks for i in range(own.start, own.stop)]
        assert places == list(range(len(batch.ids)))
        lengths = [len(own.clips) for own in of_ranks]
        assert lengths == [own.stop - own.start for own in of_ranks]
        assert max(lengths) - min(lengths) <= 1
    assert len(whole[-1].ids) == 2


@pytest.mark.parametrize("resident", ["off", "host"])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_going_on_from_the_middle(first: int, resident: str, dataset: Dataset) -> None:
    whole = list(batches(dataset).epoch(2))
    assert same(list(batches(dataset, in_memory=resident).epoch(2, first)), whole[first:])
    assert list(batches(dataset).epoch(2, len(whole))) == []


def test_a_worker_reads_the_same(dataset: Dataset) -> None:
    plain = batches(dataset, train_fraction=0.8)
    source = batches(dataset, train_fraction=0.8, workers=1)
    assert same(list(source.epoch(0)), list(plain.epoch(0)))
    assert same(list(source.epoch(1, 4)), list(plain.epoch(1, 4)))
    # An epoch that is left early leaves nothing behind.
    left = source.epoch(2)
    assert same([next(left), next(left)], list(plain.epoch(2))[:2])
    left.close()  # type: ignore[attr-defined]
    assert same(list(source.epoch(3)), list(plain.epoch(3)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_says_what_it_cannot_read_in_one_line(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(folder, copy)
    source = batches(shards.open_dataset(copy), workers=workers)
    for shard in copy.glob("train-*.tar"):
        shard.unlink()
    with pytest.raises(UserError, match=r"train-.*tar") as caught:
        list(source.epoch(0))
    assert "\n" not in str(caught.value)


def test_ids_are_recorded(dataset: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "ids" / "rank-1.jsonl"
    source = batches(dataset, rank=1, world=2, ids_file=file)
    found = [(2, batch) for batch in source.epoch(2)] + [(3, batch) for batch in source.epoch(3, 4)]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [
        {
            "epoch": epoch,
            "batch": batch.number,
            "start": batch.start,
            "ids": batch.ids[batch.start : batch.stop].tolist(),
        }
        for epoch, batch in found
    ]


def test_a_damaged_clip_is_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(folder, copy)
    shard = sorted(copy.glob("train-*.tar"))[0]
    payload = bytearray(shard.read_bytes())
    payload[512 + 44 + 100] ^= 1  # in the samples of the first clip
    shard.write_bytes(payload)
    dataset = shards.open_dataset(copy)
    with pytest.raises(UserError, match=rf"{shard.name}: sample .* is damaged"):
        list(batches(dataset).epoch(0))
    dataset.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_fraction": 0.0}, "data.train_fraction=0.0: must be above 0 and at most 1"),
        ({"train_fraction": 1.5}, "data.train_fraction=1.5: must be above 0 and at most 1"),
        ({"train_fraction": float("nan")}, "data.train_fraction=nan"),
        ({"workers": -1}, "data.workers=-1: must not be negative"),
        ({"in_memory": "gpu"}, "data.in_memory='gpu': choose one of auto, off, host, device"),
    ],
)
def test_a_wrong_number_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**wrong)
