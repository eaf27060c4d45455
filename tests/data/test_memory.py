"""Clips in memory: the same batches and the same run in every mode."""

import shutil

import numpy as np
import pytest
import torch
from run_folder import assert_same_run, ids_of

import shards
from cpprune.data import memory
from cpprune.data.config import DataConfig
from cpprune.data.loader import TrainingLoader
from cpprune.data.memory import load_into_memory
from shards import UserError
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions

CPU = torch.device("cpu")
# 32 clips in 4 batches, and a cut between the epochs.
SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", 9, "--train.epochs", 2]
SETTINGS += ["--data.train_fraction", 0.25, "--data.record_ids", "true", "--optim.lr", 1e-3]
SETTINGS += ["--optim.schedule", "constant", "--prune.ratio", 0.3, "--prune.start_epoch", 1]


@pytest.fixture
def dataset(scenes):
    """128 clips for training in one shard."""
    opened = shards.open_dataset(scenes)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def encoded(scenes_source, tmp_path_factory):
    """The same clips by encoding, 20 to a shard."""
    folders = {}
    for encoding in ("wav", "flac"):
        options = BuildOptions(
            kind="tau2022", source=scenes_source, encoding=encoding, shard_size=20
        )
        folders[encoding] = tmp_path_factory.mktemp("encoded") / encoding
        build_dataset(options, folders[encoding], workers=1)
    return folders


def epochs(dataset, where, **settings):
    """Return (ids, clips) of every batch of two epochs."""
    config = DataConfig(in_memory=where, **settings)
    source = TrainingLoader(dataset, config, 7, 3, rank=1, world=2, device=CPU)
    found = [(batch.ids, batch.clips) for epoch in (0, 3) for batch in source.epoch(epoch, 2)]
    return source, found


@pytest.mark.parametrize("encoding", ["wav", "flac"])
@pytest.mark.parametrize("where", ["host", "device", "auto"])
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_batches_are_the_same(encoded, encoding, where, fraction):
    dataset = shards.open_dataset(encoded[encoding])
    _, plain = epochs(dataset, "off", train_fraction=fraction)
    source, found = epochs(dataset, where, train_fraction=fraction, workers=3)
    assert source.in_memory is not None
    assert len(plain) == len(found) > 4
    for (ids, clips), (other_ids, other) in zip(plain, found, strict=True):
        assert (ids == other_ids).all()
        assert torch.equal(clips, other)
    assert not dataset._open._files, "shards are closed again"
    dataset.close()


def test_nothing_is_read_before_it_is_needed(dataset):
    source = TrainingLoader(dataset, DataConfig(), 7, 3, rank=0, world=1, device=CPU)
    assert "in_memory" not in vars(source)
    assert not dataset._checked.any()


def test_what_is_damaged_is_named(encoded, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(encoded["wav"], copy)
    shard = copy / "train-000004.tar"
    payload = bytearray(shard.read_bytes())
    payload[512 + 44 + 100] ^= 1  # in the samples of the first clip
    shard.write_bytes(payload)
    dataset = shards.open_dataset(copy)
    rows = dataset.split("train").ids
    with pytest.raises(UserError, match=r"train-000004.tar: sample .* is damaged"):
        load_into_memory(dataset, rows, "host", CPU)
    dataset.close()


@pytest.mark.parametrize(("free", "kept"), [(2.0, True), (1.99, False)])
def test_auto_leaves_half_of_the_memory(dataset, monkeypatch, free, kept):
    rows = dataset.split("train").ids
    monkeypatch.setattr(memory, "available_memory", lambda: int(free * 128 * 32_000 * 2))
    assert (load_into_memory(dataset, rows, "auto", CPU) is not None) == kept
    assert load_into_memory(dataset, rows, "host", CPU) is not None


@pytest.mark.parametrize("where", ["host", "device"])
def test_too_many_clips_are_refused_by_name(dataset, monkeypatch, where):
    rows = dataset.split("train").ids
    monkeypatch.setattr(memory, "available_memory", lambda: 128 * 32_000 * 2 - 1)
    with pytest.raises(UserError, match=r"data.in_memory=host: 0.0 GB of clips .*in_memory=auto"):
        load_into_memory(dataset, rows, where, CPU)


def test_validation_clips_without_room_are_refused_before_anything_is_trained(
    cli, scenes, tmp_path, monkeypatch
):
    free = iter([10**9, 10])  # for 32 clips to train on, then for 22 to validate
    monkeypatch.setattr(memory, "available_memory", lambda: next(free))
    command = ["prune", *SETTINGS, "--data.path", scenes, "--run", tmp_path / "run"]
    outcome = cli(*command, "--data.in_memory", "host")
    assert outcome.status == 2
    assert "data.in_memory=host: 0.0 GB of clips do not fit" in outcome.err
    assert not (tmp_path / "run/ids").exists()


@pytest.mark.parametrize(("where", "reads"), [("host", 2), ("off", 2 + 2 * (4 + 1))])
def test_nothing_is_read_again_once_it_is_kept(cli, scenes, tmp_path, monkeypatch, where, reads):
    """Two epochs of four batches, each with a validation of one; the report reads twice in the end."""
    counted, fetch = [], shards.reader.Dataset.fetch

    def count(self, *arguments):
        counted.append(arguments)
        return fetch(self, *arguments)

    monkeypatch.setattr(shards.reader.Dataset, "fetch", count)
    command = ["prune", *SETTINGS, "--data.path", scenes, "--run", tmp_path / "run"]
    assert cli(*command, "--data.in_memory", where).status == 0
    assert len(counted) == reads


@pytest.mark.slow
def test_a_run_ends_the_same_and_goes_on_in_another_mode(
    cli, stop_at, scenes, tmp_path, monkeypatch
):
    command = ["prune", *SETTINGS, "--data.path", scenes, "--run"]
    modes = ("off", "host", "device", "auto")
    for where in modes:
        outcome = cli(*command, tmp_path / where, "--data.in_memory", where)
        assert outcome.status == 0
        assert "Loading" not in outcome.err, "so few are loaded at once"
    monkeypatch.setattr(memory, "SHOWN_BYTES", 0)
    with stop_at(7):  # in the second epoch: 4 batches, validation, 2 batches
        more = ["--train.checkpoint_steps", 1]
        assert cli(*command, tmp_path / "changed", "--data.in_memory", "off", *more).status == 130
    outcome = cli(*command, tmp_path / "changed", "--data.in_memory", "host")
    assert "goes on from" in outcome.err
    assert "Loading clips into the memory of the machine: 32 of 32" in outcome.err
    for other in (*modes[1:], "changed"):
        assert_same_run(tmp_path / "off", tmp_path / other)
        assert ids_of(tmp_path / "off") == ids_of(tmp_path / other)


def test_threads_read_what_one_reads(encoded):
    dataset = shards.open_dataset(encoded["wav"])
    rows = dataset.split("train").ids[3::2]
    loaded = load_into_memory(dataset, rows, "host", CPU)
    assert (loaded.clips.numpy() == dataset.fetch(rows)).all()
    places = np.array([5, 0, 5, len(rows) - 1])
    out = torch.empty((4, 32_000), dtype=torch.int16)
    assert loaded.fetch(places, out) is out
    assert torch.equal(out, loaded.fetch(places))
    assert (out.numpy() == dataset.fetch(rows[places])).all()
    dataset.close()
