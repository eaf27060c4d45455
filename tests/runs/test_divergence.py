"""Trainings that diverge: they fail, say so, and keep the last model that was finite."""

import json
import math
import shutil
import weakref

import numpy as np
import pytest
import safetensors.torch
import torch
from run_folder import weights_of

import cpprune.training.loop
import shards
from cpprune.data.loader import Batch
from cpprune.evaluation.metrics import log_softmax, summary
from cpprune.models.finite import not_finite
from cpprune.runs.divergence import is_better
from cpprune.training.skipped import SkippedSteps
from shards.files.documents import to_json

SETTINGS = ["--data.train_fraction", "0.25"]


def strict(text):
    """Return what strict JSON holds; NaN and infinities fail."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def lines_of(run):
    return [strict(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def epochs_of(run):
    return [line for line in lines_of(run) if "event" not in line]


def all_strict(run):
    """Fail unless every JSON in a run's folder is strict."""
    for path in run.rglob("*.json"):
        strict(path.read_text())
    lines_of(run)


def finite(run, model):
    return all(torch.isfinite(t).all() for t in weights_of(run, model).values())


@pytest.fixture
def train(cli, tiny, scenes, tmp_path):
    def run(*more):
        settings = [*tiny, *SETTINGS, "--data.path", scenes, "--run", tmp_path / "run"]
        return cli("train", *settings, *more)

    return run


@pytest.fixture
def spoilt(monkeypatch):
    """Lets the validations of these numbers, from 0, predict no numbers."""

    def spoil(*numbers):
        predict, calls = cpprune.training.loop.predict_split, []

        def predicting(*arguments):
            logits = predict(*arguments)
            calls.append(0)
            return np.full_like(logits, np.nan) if len(calls) - 1 in numbers else logits

        monkeypatch.setattr(cpprune.training.loop, "predict_split", predicting)

    return spoil


def error_of(outcome):
    assert outcome.status == 2, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("cpprune: error")]
    assert outcome.err.rstrip().endswith(line)
    assert "Traceback" not in outcome.err
    return line


def test_a_learning_rate_that_is_far_too_high(train, cli, tmp_path):
    run = tmp_path / "run"
    settings = ["--optim.lr", "1e38", "--train.epochs", 3]
    line = error_of(train(*settings))
    assert "not finite any more; no epoch left a finite model; lower optim.lr" in line
    assert not (run / "model").exists()
    assert not (run / "model_last").exists()
    result = strict((run / "result.json").read_text())
    assert result["failed"] in line
    assert result["model"] is None
    all_strict(run)
    assert epochs_of(run)[0]["val_log_loss"] is None
    assert "not finite" in epochs_of(run)[0]["reason"]
    # The same again says the same, and another learning rate may take the folder.
    assert error_of(train(*settings)) == line
    outcome = cli("report", run)
    assert outcome.status == 0, outcome.err
    page = (run / "report.html").read_text()
    assert "A failed run" in page
    assert "The run failed: " in page
    assert train("--train.epochs", 1).status == 0
    assert "failed" not in strict((run / "result.json").read_text())


def test_a_first_epoch_that_is_not_finite_is_beaten(train, spoilt, tmp_path):
    spoilt(0)
    outcome = train("--train.epochs", 3)
    assert outcome.status == 0, outcome.err
    first, *later = epochs_of(tmp_path / "run")
    assert (first["val_macro_accuracy"], first["val_log_loss"], first["best"]) == (
        None,
        None,
        False,
    )
    assert first["reason"] == "the predictions on the validation split are not finite"
    assert later[0]["best"]
    assert "reason" not in later[0]
    assert strict((tmp_path / "run/result.json").read_text())["epoch"] >= 1
    assert "val loss not finite" in outcome.err
    all_strict(tmp_path / "run")


def test_later_epochs_that_are_not_finite_leave_the_best_model(train, spoilt, tmp_path):
    run = tmp_path / "run"
    spoilt(1, 2)
    assert train("--train.epochs", 3).status == 0
    assert [line["best"] for line in epochs_of(run)] == [True, False, False]
    assert strict((run / "result.json").read_text())["epoch"] == 0
    for name in ("model", "model_last"):
        about = strict((run / name / "model.json").read_text())
        assert about["provenance"]["epoch"] == 0


def test_a_run_without_one_finite_validation_has_failed(train, spoilt, tmp_path):
    run = tmp_path / "run"
    spoilt(0, 1)
    settings = ["--train.epochs", 2, "--optim.schedule", "reduce_on_plateau"]
    line = error_of(train(*settings))
    assert "were not finite after any epoch" in line
    assert "lower optim.lr" in line
    assert strict((run / "result.json").read_text())["failed"] in line
    assert not (run / "model").exists()
    all_strict(run)
    assert "were not finite after any epoch" in error_of(train(*settings))  # it is complete


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_weights_that_become_nan_end_the_run(train, monkeypatch, tmp_path, average):
    """Also where each step's loss said nothing of it."""
    run = tmp_path / "run"
    step = cpprune.training.loop.TrainingStep.__call__

    def poisoned(self, epoch, batch, number):
        stepped = step(self, epoch, batch, number)
        if number == 3:
            with torch.no_grad():
                next(self.engine.model.network.parameters()).view(-1)[0] = math.nan
        return stepped

    monkeypatch.setattr(cpprune.training.loop.TrainingStep, "__call__", poisoned)
    settings = ["--train.epochs", 9, "--train.ema_decay", average, "--train.checkpoint_steps", 1]
    line = error_of(train(*settings))
    assert "in epoch 2 the weights of " in line
    last = 2 if average else 1  # the average had not followed yet
    assert f"the last finite model, of epoch {last}, is in {run / 'model_last'}" in line
    assert finite(run, "model")
    assert finite(run, "model_last")
    for path in (run / "checkpoints").iterdir():
        tensors = safetensors.torch.load_file(path / "network.safetensors")
        assert all(torch.isfinite(t).all() for t in tensors.values()), path
    result = strict((run / "result.json").read_text())
    assert result["model"] == str(run / "model")
    assert result["epoch"] < last
    assert result["val"]["log_loss"] > 0
    all_strict(run)
    monkeypatch.setattr(cpprune.training.loop.TrainingStep, "__call__", step)
    outcome = train(*settings)
    assert outcome.status == 0, outcome.err
    assert "goes on from step-00000003" in outcome.err
    assert len(epochs_of(run)) == 9


def test_more_skipped_steps_than_may_be_are_a_failure(train, monkeypatch, tmp_path):
    inputs = cpprune.training.loop.TrainingStep.inputs

    def broken(self, epoch, batch, number):
        found = inputs(self, epoch, batch, number)
        return found | {"clips": torch.full(found["clips"].shape, math.nan)}

    monkeypatch.setattr(cpprune.training.loop.TrainingStep, "inputs", broken)
    line = error_of(train("--train.epochs", 3, "--train.max_skipped", 1))
    assert "train.max_skipped is 1" in line
    assert strict((tmp_path / "run/result.json").read_text())["failed"] in line


def test_a_run_whose_best_was_nan_finds_a_better_one(train, scenes, tmp_path):
    """As an older version left it: NaN in the checkpoint's JSON."""
    from run_folder import change_state as change

    run = tmp_path / "run"
    assert train("--train.epochs", 3, "--train.time_limit_minutes", 1e-9).status == 0

    def spoil(state):
        state["progress"] |= {"best": math.nan, "val_losses": [math.nan], "loss_sums": [math.nan]}

    change(run, spoil)
    outcome = train("--train.epochs", 3)
    assert outcome.status == 0, outcome.err
    assert any(line["best"] for line in epochs_of(run))
    all_strict(run)


# --- models that are not finite ------------------------------------------------------------------------


@pytest.fixture
def model(tiny_run, tmp_path):
    """A model, and what changes its weights."""
    folder = shutil.copytree(tiny_run / "model", tmp_path / "model")

    def change(do):
        import hashlib

        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        payload = safetensors.torch.save(do({n: t.clone() for n, t in tensors.items()}))
        (folder / "model.safetensors").write_bytes(payload)
        about = json.loads((folder / "model.json").read_text())
        about["weights"]["sha256"] = hashlib.sha256(payload).hexdigest()
        (folder / "model.json").write_text(json.dumps(about))

    return folder, change


def poison(tensors):
    name = next(name for name, t in tensors.items() if name.endswith("weight"))
    tensors[name].view(-1)[0] = math.nan
    return tensors


def overflow(tensors):
    """Every number is finite, but no output is."""
    for name, tensor in tensors.items():
        if name.endswith("weight"):
            tensor.fill_(3e38)
    return tensors


@pytest.mark.parametrize(
    ("spoil", "says"), [(poison, "numbers that are not finite"), (overflow, "output is not finite")]
)
def test_commands_say_that_a_model_is_not_finite(refused, model, scenes, spoil, says, tmp_path):
    import soundfile

    folder, change = model
    change(spoil)
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 32_000), 32_000)
    refused("predict", folder, tmp_path / "a.wav", names=[says, "optim.lr"])
    refused("evaluate", folder, "--data", scenes, names=[says, "optim.lr"])


def test_summarise_refuses_figures_that_are_not_finite(refused, cli, tiny_run, scenes, tmp_path):
    report = cli("evaluate", tiny_run / "model", "--data", scenes, "--json").json
    for number, value in enumerate((None, math.nan)):
        spoilt = tmp_path / f"{number}.json"
        spoilt.write_text(json.dumps({**report, "log_loss": value}))
        fine = tmp_path / "fine.json"
        fine.write_text(json.dumps(report))
        refused("summarise", fine, spoilt, names=[spoilt, "not finite"])


def test_compare_leaves_out_runs_that_failed(cli, tiny_run, train, tmp_path):
    assert train("--optim.lr", "1e38", "--train.epochs", 1).status == 2
    outcome = cli("compare", tiny_run, tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert "run is left out: the run failed." in outcome.out


# --- functions -----------------------------------------------------------------------------------------


def test_json_is_strict():
    value = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": "NaN", "d": True}
    assert strict(to_json(value)) == {"a": [1.5, None, [None, {"b": None}]], "c": "NaN", "d": True}
    assert to_json({"a": 1.5}, indent=2) == json.dumps({"a": 1.5}, indent=2)


def test_what_is_not_finite_is_never_better():
    assert not is_better(None, None, "macro_accuracy")
    assert not is_better(None, 0.1, "log_loss")
    assert is_better(0.1, None, "macro_accuracy")
    assert is_better(0.2, 0.1, "macro_accuracy")
    assert not is_better(0.1, 0.1, "macro_accuracy")
    assert is_better(0.1, 0.2, "log_loss")
    assert not is_better(0.2, 0.1, "log_loss")


def test_predictions_that_are_no_numbers_have_no_figures():
    for wrong in (math.nan, math.inf, -math.inf):
        logits = np.array([[1.0, 2.0], [wrong, 0.0]])
        found = summary(log_softmax(logits), np.array([0, 1]))
        assert found == {"macro_accuracy": None, "accuracy": None, "log_loss": None, "clips": 2}


def test_names_of_what_is_not_finite():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    assert not_finite(network) == []
    network[1].running_var[0] = math.inf
    assert not_finite(network) == []
    network[1].running_mean[1] = math.nan
    with torch.no_grad():
        network[0].bias[0] = -math.inf
    assert not_finite(network) == ["0.bias", "1.running_mean"]


def test_steps_that_may_have_been_skipped_do_not_keep_their_clips(scenes):
    steps = SkippedSteps(shards.open_dataset(scenes), None, 0, torch.device("cpu"))
    clips = torch.zeros(4, 9)
    steps.add(Batch(0, np.arange(4), 0, 4, clips), torch.tensor(False))
    there = weakref.ref(clips)
    del clips
    assert there() is None
