"""Several processes that keep clips in one memory."""

import gc
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folder import assert_same_run, ids_of

import shards
from cpprune.data.memory import load_into_memory
from cpprune.distributed.collectives import all_gather_json
from cpprune.distributed.process_group import rank
from shards import UserError

CPU = torch.device("cpu")
SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", 9, "--train.epochs", 2]
SETTINGS += ["--data.train_fraction", 0.25, "--data.record_ids", "true"]
SETTINGS += ["--optim.schedule", "constant"]


def _inode():
    """Return the inode of this process's shared clips, which is a file without a name."""
    maps = Path("/proc/self/maps").read_text()
    lines = [line for line in maps.splitlines() if "memfd:cpprune-clips" in line]
    assert len(lines) == 1
    assert lines[0].endswith("/memfd:cpprune-clips (deleted)")
    return lines[0].split()[4]


def _one_memory(folder):
    gc.collect()  # what an earlier run of this process still holds
    dataset = shards.open_dataset(folder)
    rows = np.arange(len(dataset))  # of three shards
    loaded = load_into_memory(dataset, rows, "auto", CPU)
    read = int(dataset._checked.sum())
    assert (loaded.clips.numpy() == dataset.fetch(rows)).all()
    all_gather_json(None, CPU)  # nobody writes before all have compared
    if rank() == 1:
        loaded.clips[3, 7] = 12_345
    all_gather_json(None, CPU)
    return [_inode(), int(loaded.clips[3, 7]), read]


@pytest.mark.slow
def test_a_node_has_one_copy_without_a_name(two, scenes):
    (inode, sample, read), other = two.call(_one_memory, str(scenes))
    assert sample == 12_345
    assert other == [inode, sample, 22], "rank 1 reads the second of three shards"
    assert read == 128 + 50


def _damaged(folder):
    dataset = shards.open_dataset(folder)
    dataset._crc32 = dataset._crc32.copy()
    if rank() == 1:
        dataset._crc32 ^= np.uint32(1)
    with pytest.raises(UserError) as caught:
        load_into_memory(dataset, np.arange(len(dataset)), "host", CPU)
    return str(caught.value)


def test_what_one_rank_cannot_read_ends_all(two, scenes):
    messages = two.call(_damaged, str(scenes))
    assert "is damaged (its checksum differs)" in messages[0]
    assert messages[0] == messages[1]


def _without_room_for_files(folder):
    dataset = shards.open_dataset(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        rows = dataset.split("train").ids
        assert load_into_memory(dataset, rows, "auto", CPU) is None
        with pytest.raises(UserError) as caught:
            load_into_memory(dataset, rows, "host", CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return str(caught.value)


def test_where_memory_cannot_be_shared(two, scenes):
    for message in two.call(_without_room_for_files, str(scenes)):
        assert "set data.in_memory=off" in message


@pytest.mark.slow
def test_training_is_the_same(two, scenes, tmp_path):
    command = ["train", *SETTINGS, "--data.path", scenes, "--run"]
    for where in ("off", "host"):
        two.cpprune(*command, tmp_path / where, "--data.in_memory", where)
    stop = ["--train.time_limit_minutes", 1e-9, "--data.in_memory", "host"]
    assert "stopped by" in two.cpprune(*command, tmp_path / "changed", *stop)[0]["err"]
    two.cpprune(*command, tmp_path / "changed", "--data.in_memory", "off")
    for other in ("host", "changed"):
        assert_same_run(tmp_path / "off", tmp_path / other)
        for number in (0, 1):
            assert ids_of(tmp_path / "off", number) == ids_of(tmp_path / other, number)
