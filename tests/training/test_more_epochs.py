"""A run goes on to more epochs, finished or not, as if it had been told so from the start."""

import json
import shutil

import pytest
from marks import slow
from run_folder import assert_same_run, epochs_of, metrics

# Two steps an epoch.
SETTINGS = ["--data.train_fraction", 0.25, "--train.batch_size", 16, "--optim.warmup_epochs", 1]
SETTINGS += ["--optim.hold_epochs", 1, "--optim.rampdown_epochs", 4, "--train.ema_decay", 0.9]
PRUNING = ["--prune.ratio", 0.3, "--prune.start_epoch", 1, "--train.keep_checkpoints", 9]


@pytest.fixture
def go(cli, tiny, scenes):
    def train(run, epochs, *more):
        settings = [*tiny, *SETTINGS, "--data.path", scenes, "--run", run, *more]
        return cli("train", *settings, "--train.epochs", epochs)

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        slow(["--optim.schedule", "lambda", *PRUNING]),
        slow(["--optim.schedule", "reduce_on_plateau", "--optim.plateau_patience", 0]),
        ["--optim.schedule", "constant", "--optim.name", "sgd"],
    ],
    ids=lambda words: words[1],
)
def test_a_finished_run_goes_on_to_the_bits_of_a_longer_one(go, tmp_path, more):
    assert go(tmp_path / "long", 4, *more).status == 0
    assert go(tmp_path / "run", 2, *more).status == 0
    outcome = go(tmp_path / "run", 4, *more)
    assert outcome.status == 0, outcome.err
    assert f"{tmp_path / 'run'}: goes on to 4 epochs instead of 2\n" in outcome.err
    assert "goes on from step-" in outcome.err
    assert_same_run(tmp_path / "run", tmp_path / "long")
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("run", "long")]
    assert results[0]["epoch"] == results[1]["epoch"]


@pytest.mark.slow
def test_a_cosine_is_that_of_the_new_number_of_epochs(go, tmp_path, stop_at):
    cosine = ["--optim.schedule", "cosine", "--optim.warmup_epochs", 0]
    assert go(tmp_path / "long", 5, *cosine).status == 0
    assert go(tmp_path / "run", 2, *cosine).status == 0
    said = (
        f"{tmp_path / 'run'}: goes on to 5 epochs instead of 2; from epoch 3 on, the learning rate "
        "is that of a cosine over 5 epochs, and before it was that of one over 2\n"
    )
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    outcome = go(tmp_path / "run", 5, *cosine)
    assert outcome.status == 0
    assert said in outcome.err
    rates = [[epoch["lr"] for epoch in epochs_of(tmp_path / n)] for n in ("run", "long")]
    assert rates[0][2:] == rates[1][2:]
    assert rates[0][1] != rates[1][1]
    # Stopped and resumed on the way, it says nothing more, and ends with the same bits.
    more = ["--train.checkpoint_steps", 1]
    with stop_at(4):
        assert go(tmp_path / "again", 5, *cosine, *more).status == 130
    outcome = go(tmp_path / "again", 5, *cosine, *more)
    assert "instead of" not in outcome.err
    assert metrics(tmp_path / "again") == metrics(tmp_path / "run")


def test_a_run_that_goes_on_is_not_finished(go, tmp_path, stop_at):
    run = tmp_path / "run"
    assert go(run, 2).status == 0
    with stop_at(2):
        assert go(run, 3).status == 130
    assert not (run / "result.json").exists()
    assert go(run, 3).status == 0
    assert len(epochs_of(run)) == 3


def test_an_end_that_is_past_is_refused(go, tmp_path, stop_at):
    run = tmp_path / "run"
    assert go(run, 2).status == 0
    before = (run / "result.json").read_bytes()
    outcome = go(run, 1)
    assert outcome.status == 2
    assert outcome.err == (
        f"cpprune: error: {run}: train.epochs=1: 2 epochs were trained already; set at least as many, "
        "or choose another --run\n"
    )
    assert (run / "result.json").read_bytes() == before
    # In the middle of an epoch, it has to be trained to its end.
    more = ["--train.checkpoint_steps", 1]
    with stop_at(2):
        assert go(run, 4, *more).status == 130
    assert "3 epochs were trained already" in go(run, 2).err
    assert go(run, 3).status == 0
    assert len(epochs_of(run)) == 3


def test_other_settings_are_refused_with_more_epochs_too(go, tmp_path):
    run = tmp_path / "run"
    assert go(run, 1).status == 0
    outcome = go(run, 2, "--optim.lr", 5e-4)
    assert outcome.status == 2
    assert "run with other settings (optim.lr: " in outcome.err
    assert "epochs" not in outcome.err
