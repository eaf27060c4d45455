"""Caches of teachers' logits: the same bits as on the fly; stopped, damaged, of other settings."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from run_folder import assert_same_run

from cpprune.distill.cache import LogitsCache
from shards.errors import UserError

# 32 clips in batches of 9, 9, 9 and 5.
SETTINGS = ["--data.train_fraction", 0.25, "--train.batch_size", 9, "--train.epochs", 2]
SETTINGS += ["--model.widths", "[6, 8, 10]", "--optim.schedule", "constant"]
SETTINGS += ["--augment.mixup_alpha", 0.3, "--augment.roll", 400, "--augment.freq_mask", 20]
SETTINGS += ["--augment.mixstyle_p", 1, "--train.ema_decay", 0.9, "--distill.mode", "on_the_fly"]
SIZE = 4 * 32 * 10  # bytes of an epoch's logits


@pytest.fixture(scope="module")
def settings(scenes, tiny_run):
    return [*SETTINGS, "--data.path", scenes, "--distill.teachers", f"[{tiny_run / 'model'}]"]


@pytest.fixture(scope="module")
def on_the_fly(call, settings, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "fly"
    assert call("train", *settings, "--run", run) == 0
    return run


@pytest.fixture(scope="module")
def written(call, settings, on_the_fly, tmp_path_factory):
    """A cache that a run of two epochs has written. Tests must not change it."""
    folder = tmp_path_factory.mktemp("cache")
    run = folder.parent / "written"
    assert call("train", *settings, "--run", run, "--distill.cache", folder) == 0
    assert_same_run(run, on_the_fly)
    return folder


@pytest.fixture
def copied(written, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    for file in written.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def never_asked(monkeypatch):
    def asked(*_):
        pytest.fail("a teacher is asked")

    monkeypatch.setattr("cpprune.distill.teacher.Teacher.logits_of_inputs", asked)


def sums(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.slow
def test_a_run_that_reads_ends_with_the_bits_of_one_that_asks(
    cli, settings, on_the_fly, written, never_asked, tmp_path
):
    before = sums(written)
    assert before.keys() == {"logits.json", "epoch-0000.npz", "epoch-0001.npz"}
    outcome = cli("train", *settings, "--run", tmp_path / "run", "--distill.cache", written)
    assert outcome.status == 0
    assert_same_run(tmp_path / "run", on_the_fly)
    assert sums(written) == before
    assert "holds the teachers' logits of 2 of 2 epochs; the other 0 take 0 bytes" in outcome.err


@pytest.mark.slow
def test_the_size_is_said_and_more_epochs_add_to_it(cli, settings, on_the_fly, copied, tmp_path):
    (copied / "epoch-0001.npz").unlink()
    words = [*settings, "--run", tmp_path / "run", "--distill.cache", copied]
    outcome = cli("train", *words)
    assert outcome.status == 0
    assert f"logits of 1 of 2 epochs; the other 1 take {SIZE:,} bytes" in outcome.err
    assert_same_run(tmp_path / "run", on_the_fly)
    with np.load(copied / "epoch-0001.npz") as file:
        assert file["logits"].nbytes == SIZE
    # Another student, of more epochs: nothing that the teachers see has changed.
    other = ["--train.epochs", 3, "--optim.lr", 1e-4, "--distill.temperature", 4]
    assert cli("train", *words, *other, "--run", tmp_path / "more").status == 0
    assert (copied / "epoch-0002.npz").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1], ids=["empty", "one epoch there"])
def test_a_stopped_run_ends_with_the_same_bits(
    cli, settings, stop_at, on_the_fly, copied, written, before, tmp_path
):
    for file in list(copied.iterdir())[: 3 if not before else 0]:
        file.unlink()
    if before:
        (copied / "epoch-0001.npz").unlink()
    words = [*settings, "--train.checkpoint_steps", 1, "--distill.cache", copied]
    words += ["--run", tmp_path / "run"]
    for number in [3, 5]:
        with stop_at(number):
            assert cli("train", *words).status == 130
        assert not list(copied.glob("*.tmp"))
    outcome = cli("train", *words)
    assert outcome.status == 0
    assert_same_run(tmp_path / "run", on_the_fly)
    there = sums(copied)
    assert there.items() <= sums(written).items(), "only whole epochs, with the same bits"
    assert "epoch-0000.npz" not in there or before, "which was trained in two pieces"


def test_a_cache_that_comes_late_or_goes_changes_nothing(
    cli, settings, stop_at, on_the_fly, tmp_path
):
    words = [*settings, "--train.checkpoint_steps", 1, "--run", tmp_path / "run"]
    with stop_at(3):
        assert cli("train", *words).status == 130
    cache = tmp_path / "cache"
    with stop_at(3):
        outcome = cli("train", *words, "--distill.cache", cache)
    assert outcome.status == 130
    assert "epoch 1 was begun without it" in outcome.err
    assert cli("train", *words).status == 0
    assert_same_run(tmp_path / "run", on_the_fly)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["without a cache", "with a cache"])
def test_a_killed_run_ends_with_the_same_bits(cli, settings, on_the_fly, tmp_path, cached):
    """SIGKILL at a checkpoint of each epoch."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    words = [*settings, "--train.checkpoint_steps", 1, "--run", run]
    words += ["--distill.cache", cache] if cached else []
    command = ["train", *map(str, words)]
    for checkpoint in ("step-00000002", "step-00000005"):
        with subprocess.Popen(
            [sys.executable, "-m", "cpprune", *command],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process:
            deadline = time.monotonic() + 600
            while not (run / "checkpoints" / checkpoint).exists():
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    assert not (run / "result.json").exists()
    outcome = cli(*command)
    assert outcome.status == 0
    assert "goes on from step-" in outcome.err
    assert_same_run(run, on_the_fly)


def test_no_flipped_byte_is_taken_for_logits(written, tmp_path):
    """Of any bit of a small file: it is what was written, or passed over with a line, or refused."""
    said = []
    wanted = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

    def cache():
        return LogitsCache(tmp_path / "cache", {}, (3, 2), torch.device("cpu"), said.append)

    one = cache()
    one.begin(0, 0)
    one.keep(torch.from_numpy(wanted), 3)
    one.end(0)
    file = tmp_path / "cache/epoch-0000.npz"
    content = file.read_bytes()
    outcomes = set()
    for place in range(len(content)):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << place % 8
        file.write_bytes(spoilt)
        said.clear()
        try:
            one.begin(0, 0)
        except UserError:
            outcomes.add("refused")
            continue
        found = one.rows(slice(0, 3))
        if found is None:
            assert len(said) == 1
            assert str(file) in said[0]
            assert "computed anew" in said[0]
            outcomes.add("said")
        else:
            np.testing.assert_array_equal(found, wanted)
            assert not said
            outcomes.add("read")
    assert {"read", "said"} <= outcomes
    for length in (0, 1, 100, len(content) - 1):
        file.write_bytes(content[:length])
        said.clear()
        one.begin(0, 0)
        assert one.rows(slice(0, 3)) is None
        assert len(said) == 1


def test_a_damaged_epoch_is_computed_anew(cli, settings, on_the_fly, copied, written, tmp_path):
    content = bytearray((copied / "epoch-0000.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "epoch-0000.npz").write_bytes(content)
    words = [*settings, "--run", tmp_path / "run", "--distill.cache", copied]
    outcome = cli("train", *words)
    assert outcome.status == 0
    assert outcome.err.count("computed anew") == 1
    assert_same_run(tmp_path / "run", on_the_fly)
    assert sums(copied) == sums(written)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--seed", 1], ["seed", "1 now"]),
        (["--augment.roll", 401], ["augment.roll: 400 there, 401 now"]),
        (["--augment.time_mask", 3], ["augment.time_mask: the default there, 3 now"]),
        (["--augment.freq_mask", 0], ["augment.freq_mask: 20 there, the default now"]),
        (["--train.batch_size", 8], ["train.batch_size: 9 there, 8 now"]),
        (["--data.train_fraction", 0.5], ["data.train_fraction: 0.25 there, 0.5 now"]),
        (["--features.n_mels", 64], ["features.n_mels: the default there, 64 now"]),
        (["--distill.average", "probabilities"], ["distill.average"]),
        (["--distill.teachers", "[{last}]"], ["distill.teachers: ['sha256 "]),
    ],
    ids=lambda value: str(value[0]).removeprefix("--"),
)
def test_a_cache_of_other_settings_is_refused(
    refused, settings, written, tiny_run, words, names, tmp_path
):
    words = [str(word).format(last=tiny_run / "model_last") for word in words]
    before = sums(written)
    line = [*settings, *words, "--run", tmp_path / "run", "--distill.cache", written]
    refused("train", *line, names=[f"distill.cache={written}", *names])
    assert sums(written) == before
    assert not (tmp_path / "run").exists()


def test_an_epoch_of_elsewhere_is_refused(cli, settings, copied, tmp_path):
    words = [*settings, "--run", tmp_path / "run", "--distill.cache", copied]
    (copied / "epoch-0000.npz").write_bytes((copied / "epoch-0001.npz").read_bytes())
    outcome = cli("train", *words)
    assert outcome.status == 2
    assert f"{copied / 'epoch-0000.npz'}: is of another epoch" in outcome.err.splitlines()[-1]


def test_what_is_no_cache_is_refused(refused, settings, tmp_path, tiny_run):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("mine")
    words = [*settings, "--run", tmp_path / "run", "--distill.cache"]
    refused("train", *words, theirs, names=["distill.cache", theirs, "notes.txt"])
    (theirs / "notes.txt").write_text("mine")
    clean = ["--distill.mode", "clean"]
    refused("train", *words, tmp_path / "new", *clean, names=["distill.cache", "on_the_fly"])
    pruned = ["--prune.ratio", 0.5, "--prune.start_epoch", 1, "--distill.teachers", "[uncut]"]
    refused("train", *words, tmp_path / "new", *pruned, names=["distill.cache", "uncut"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
