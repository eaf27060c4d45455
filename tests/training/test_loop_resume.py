"""A stop, wherever it comes, changes nothing of what a run ends with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from marks import slow
from run_folder import assert_same_run, epochs_of, events_of, metrics, weights_of

import cpprune.evaluation.metrics

# 32 clips in 4 batches, then 22 to validate: 5 reads an epoch. Events at epochs 1 and 2.
SETTINGS = [
    *("--data.train_fraction", 0.25, "--train.batch_size", 8, "--train.epochs", 4),
    *("--model.widths", "[6, 8, 10]", "--augment.mixstyle_p", 0.6, "--augment.mixup_alpha", 0.3),
    *("--optim.lr", 3e-3, "--optim.schedule", "cosine", "--optim.warmup_steps", 2),
    *("--prune.ratio", 0.5, "--prune.steps", 2, "--prune.start_epoch", 1),
    *("--prune.sparsity", "growing", "--prune.sparsity_strength", 1e-2),
    *("--prune.learning_rate", "rewind", "--train.ema_decay", 0.9),
]


@pytest.fixture(scope="module")
def whole_run(call, scenes, tmp_path_factory):
    """The run that nobody stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call("prune", *SETTINGS, "--data.path", scenes, "--run", run) == 0
    return run


@pytest.fixture
def command(scenes, tmp_path):
    """The same as a command line, for `tmp_path / "run"`."""
    return ["prune", *SETTINGS, "--data.path", scenes, "--run", tmp_path / "run"]


def test_the_run_that_is_compared_with_is_one(whole_run):
    assert [event["epoch"] for event in events_of(whole_run)] == [1, 2]
    assert len(epochs_of(whole_run)) == 4
    assert weights_of(whole_run).keys() == weights_of(whole_run, "model_last").keys()
    assert len(list((whole_run / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize(
    ("stops", "every", "checkpoint"),
    [
        slow([1], 0, None),  # before anything
        slow([3], 0, None),  # in the first epoch
        slow([3], 1, "step-00000002"),
        slow([5], 1, "step-00000003"),  # while validating
        slow([6], 0, "step-00000004"),  # between the first event and the first step after it
        ([8], 1, "step-00000006"),  # after the first event
        slow([9], 3, "step-00000006"),  # with a step to do again
        slow([11], 1, "step-00000008"),  # between the second event and the first step after it
        slow([13], 1, "step-00000010"),
        slow([20], 0, "step-00000012"),  # while validating for the last time
        slow([4, 4, 4, 4, 4, 4], 1, "step-00000013"),  # before, between and after the events
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(
    cli, whole_run, command, stop_at, tmp_path, stops, every, checkpoint
):
    run = tmp_path / "run"
    command += ["--train.checkpoint_steps", every]
    for number in stops:
        with stop_at(number):
            assert cli(*command).status == 130
    outcome = cli(*command)
    assert outcome.status == 0
    if checkpoint:
        assert f"goes on from {checkpoint} " in outcome.err
    else:
        assert "goes on from" not in outcome.err
    assert_same_run(run, whole_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"), [("step-", 1), slow("step-", 3), slow("model", 1), slow("model_last", 3)]
)
def test_a_stop_while_something_is_written(
    cli, whole_run, command, tmp_path, monkeypatch, name, number
):
    """Stopped when a new folder is about to take its place."""
    run = tmp_path / "run"
    rename, seen = Path.rename, []

    def renaming(self, target):
        there = Path(target).name
        if there == name or (name == "step-" and there.startswith(name)):
            seen.append(there)
            if len(seen) == number:
                raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renaming)
        assert cli(*command).status == 130
    put_back = name == "model_last"  # the one before
    assert len(seen) == number + put_back
    assert cli(*command).status == 0
    assert_same_run(run, whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["step-00000002", "step-00000006", "step-00000011"])
def test_a_killed_process(cli, whole_run, command, tmp_path, checkpoint):
    """SIGKILL, before, between and after the events; checkpoints at every step."""
    run = tmp_path / "run"
    command = [str(word) for word in (*command, "--train.checkpoint_steps", 1)]
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
    assert_same_run(run, whole_run)


@pytest.mark.slow
def test_what_changes_nothing_may_change_when_a_run_goes_on(
    cli, whole_run, scenes, stop_at, tmp_path
):
    """The run folder moves, so does the dataset, and clips are kept in memory."""
    command = ["prune", *SETTINGS]
    before = ["--data.path", scenes, "--run", tmp_path / "before", "--train.checkpoint_steps", 2]
    with stop_at(14):
        assert cli(*command, *before).status == 130
    (tmp_path / "before").rename(tmp_path / "after")
    shutil.copytree(scenes, tmp_path / "moved")
    after = ["--data.path", tmp_path / "moved", "--run", tmp_path / "after"]
    after += ["--data.in_memory", "host", "--train.keep_checkpoints", 1]
    outcome = cli(*command, *after)
    assert outcome.status == 0
    assert "goes on from step-00000010" in outcome.err
    assert_same_run(tmp_path / "after", whole_run)
    assert len(list((tmp_path / "after/checkpoints").iterdir())) <= 2, "the last and the best"


def test_a_finished_run_is_not_trained_again(cli, whole_run, command, tmp_path, stop_at):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    before = (run / "model/model.safetensors").read_bytes()
    with pytest.raises(AssertionError, match="over after 0 reads"), stop_at(1):
        result = cli(*command, "--json").json
    assert (
        result["fingerprint"] == json.loads((whole_run / "result.json").read_text())["fingerprint"]
    )
    assert (run / "model/model.safetensors").read_bytes() == before
    assert metrics(run) == metrics(whole_run)


@pytest.mark.slow
def test_resume_never_begins_again(cli, whole_run, command, stop_at, tmp_path):
    run = tmp_path / "run"
    with stop_at(12):
        assert cli(*command, "--seed", 9).status == 130
    outcome = cli(*command, "--resume", "never")
    assert outcome.status == 0
    assert "goes on from" not in outcome.err
    assert_same_run(run, whole_run)


def test_checkpoints_are_as_many_as_asked_for(cli, tiny, scenes, tmp_path):
    settings = [*tiny, "--data.path", scenes, "--run", tmp_path, "--train.epochs", 2]
    settings += ["--data.train_fraction", 0.5, "--train.checkpoint_steps", 1]
    assert cli("train", *settings, "--train.keep_checkpoints", 3).status == 0
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert set(names) >= {"step-00000006", "step-00000007", "step-00000008"}
    best = [line["step"] for line in epochs_of(tmp_path) if line["best"]][-1]
    assert set(names) == {f"step-0000000{step}" for step in (6, 7, 8, best)}


def test_the_checkpoint_of_the_best_model_is_kept(cli, tiny, scenes, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 4.0])
    summary = cpprune.evaluation.metrics.summary
    monkeypatch.setattr(
        cpprune.evaluation.metrics, "summary", lambda *a: summary(*a) | {"log_loss": next(losses)}
    )
    settings = [*tiny, "--data.path", scenes, "--run", tmp_path, "--train.monitor", "log_loss"]
    settings += ["--data.train_fraction", 0.25, "--train.keep_checkpoints", 1, "--train.epochs", 4]
    assert cli("train", *settings).status == 0
    steps = [line["step"] for line in epochs_of(tmp_path)]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (steps[1], steps[3])]
