"""Runs that are asked to stop, and what goes wrong unasked: nothing is lost, and one line says it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from marks import slow
from run_folder import assert_same_run, epochs_of, metrics, weights_of

import cpprune.training.step

SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", 8, "--train.epochs", 3]
SETTINGS += ["--data.train_fraction", 0.25, "--optim.schedule", "constant"]


@pytest.fixture(scope="module")
def whole(call, scenes, tmp_path_factory):
    """The run that nobody stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call("train", *SETTINGS, "--data.path", scenes, "--run", run) == 0
    return run


@pytest.fixture
def command(scenes, tmp_path):
    return ["train", *SETTINGS, "--data.path", scenes, "--run", tmp_path / "run"]


@pytest.mark.parametrize("number", [1, slow(3), 5, slow(6), 11])
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_and_nothing_is_lost(
    cli, whole, command, tmp_path, kind, number, at_read
):
    with at_read(number, lambda: os.kill(os.getpid(), kind)):
        outcome = cli(*command, "--json")
    assert outcome.status == 0
    assert outcome.json["stopped"] == kind.name
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"stopped by {kind.name} at epoch ")
    assert str(tmp_path / "run") in last
    assert "the same command goes on" in last
    assert not (tmp_path / "run/result.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert cli(*command).status == 0
    assert_same_run(whole, tmp_path / "run")


def test_a_file_stops_the_run(cli, whole, command, tmp_path, at_read):
    stop = tmp_path / "run/STOP"
    with at_read(3, stop.touch):
        outcome = cli(*command)
    assert outcome.status == 0
    assert f"stopped by {stop} at epoch 1, batch 4" in outcome.err
    assert cli(*command).status == 0
    assert not stop.exists()
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_time_limit_stops_the_run(cli, whole, command, tmp_path):
    rounds = 0
    while not (tmp_path / "run/result.json").exists():
        outcome = cli(*command, "--train.time_limit_minutes", 1e-9)
        assert outcome.status == 0, outcome.err
        rounds += 1
    # A step each time, and the last of an epoch goes on to validation.
    assert rounds == 12
    assert_same_run(whole, tmp_path / "run")


def test_a_second_interrupt_kills(tmp_path):
    program = """
import os, signal, sys, torch
from pathlib import Path
from cpprune.distributed.preemption import Preemption
with Preemption(Path(sys.argv[1]), 0, signals=True) as preemption:
    os.kill(os.getpid(), signal.SIGINT)
    print(preemption.stop_reason(1, torch.device("cpu")), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
"""
    words = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.stdout == "SIGINT\n"
    assert done.returncode == -signal.SIGINT


# --- gradients that are no numbers --------------------------------------------------------------------


@contextmanager
def broken_steps(*numbers):
    """What the network sees in these steps, from 1, is no number."""
    augmented, calls = cpprune.training.step.augmented, 0

    def breaking(*arguments):
        nonlocal calls
        calls += 1
        x = augmented(*arguments)
        return x * torch.nan if calls in numbers else x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpprune.training.step, "augmented", breaking)
        yield


@pytest.mark.parametrize("more", [[], ["--train.clip_norm", 1], ["--train.ema_decay", 0.9]])
def test_a_step_that_is_no_number_changes_nothing(cli, command, tmp_path, more):
    more = [*more, "--train.checkpoint_steps", 1, "--train.keep_checkpoints", 20]
    with broken_steps(6):
        outcome = cli(*command, *more)
    assert outcome.status == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "skipped" in line]
    assert line.startswith("epoch 2, batch 2: the gradient is not finite (clips ")
    (record,) = [line for line in metrics(tmp_path / "run") if line.get("event") == "skipped"]
    assert record["epoch"] == 1
    assert record["batch"] == 1
    assert len(record["clips"]) == 8
    assert record["clips"][0] in line
    steps = tmp_path / "run/checkpoints"
    for name in ("network", "optimizer"):
        before, after = (
            (steps / f"step-0000000{n}/{name}.safetensors").read_bytes() for n in (5, 6)
        )
        assert before == after
    assert all(torch.isfinite(t).all() for t in weights_of(tmp_path / "run").values())
    assert all(2 < line["train_loss"] < 2.6 for line in epochs_of(tmp_path / "run")), "of 24 clips"


def test_too_many_such_steps_end_the_run(cli, command, tmp_path):
    with broken_steps(2, 3, 6):
        outcome = cli(*command, "--train.max_skipped", 2)
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("cpprune: error: epoch 2, batch 2: the gradient is not finite (clips ")
    assert "3 such step(s), train.max_skipped is 2" in last
    assert "Traceback" not in outcome.err
    assert len(epochs_of(tmp_path / "run")) == 1


def test_skipped_steps_are_counted_over_a_stop(cli, command, at_read):
    with broken_steps(2), at_read(4, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert cli(*command, "--train.max_skipped", 1).status == 0
    with broken_steps(2):
        outcome = cli(*command, "--train.max_skipped", 1)
    assert outcome.status == 2
    assert "2 such step(s)" in outcome.err


# --- a disk that is full ------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written(cli, whole, command, tmp_path):
    """As on a full disk: files may not grow beyond 20 kB, which the first checkpoint would."""
    assert cli(*command, "--train.epochs", 3, "--train.time_limit_minutes", 1e-9).status == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        outcome = cli(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.status == 2, outcome.err
    last = outcome.err.splitlines()[-1]
    assert ".safetensors: cannot be written" in last
    assert "the last checkpoint is whole" in last
    assert "Traceback" not in outcome.err
    left = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert left == ["step-00000001"], "nothing half-written stays"
    assert cli(*command).status == 0
    assert_same_run(whole, tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB of its own."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        if os.environ.get("CI"):
            pytest.fail(made.stderr)
        pytest.skip(f"cannot mount: {made.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_file_system_that_is_full(cli, whole, command, small_disk):
    run = small_disk / "run"
    command = [*command[:-1], run]
    assert cli(*command, "--train.time_limit_minutes", 1e-9).status == 0
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096))
    outcome = cli(*command)
    assert outcome.status == 2, outcome.err
    last = outcome.err.splitlines()[-1]
    assert "cannot be written (No space left on device)" in last
    assert "make room" in last
    assert "Traceback" not in outcome.err
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000001"]
    (small_disk / "ballast").unlink()
    assert cli(*command).status == 0
    assert_same_run(whole, run)


def test_ids_are_recorded_once(cli, command, tmp_path, at_read):
    record = ["--data.record_ids", "true"]
    with at_read(7, lambda: (_ for _ in ()).throw(KeyboardInterrupt)):
        assert cli(*command, *record).status == 130
    assert cli(*command, *record).status == 0
    lines = (tmp_path / "run/ids/rank-0.jsonl").read_text().splitlines()
    batches = [(json.loads(line)["epoch"], json.loads(line)["batch"]) for line in lines]
    assert batches == [(e, b) for e in range(3) for b in range(4)]
