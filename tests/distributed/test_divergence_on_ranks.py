"""A training on two processes that diverges: both fail, one tells, and what was finite is kept."""

import json
import math

import pytest
import torch
from run_folder import weights_of

from cpprune.cli.main import main

SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", "8"]
SETTINGS += ["--data.train_fraction", "0.25", "--optim.schedule", "constant"]


@pytest.fixture
def command(scenes, tmp_path):
    return ["train", *SETTINGS, "--data.path", str(scenes), "--run", str(tmp_path / "run")]


def test_a_learning_rate_that_is_far_too_high(two, command, tmp_path):
    words = [*command, "--optim.lr", "1e38", "--train.epochs", "2"]
    first, second = two.cpprune(*words, status=2)
    for answer in (first, second):
        errors = [line for line in answer["err"].splitlines() if line.startswith("cpprune: error")]
        assert len(errors) == 1
        assert "not finite" in errors[0]
        assert "Traceback" not in answer["err"]
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["failed"] in first["err"]
    assert not (tmp_path / "run/model").exists()
    two.cpprune(*command, "--train.epochs", "1")  # another learning rate may take the folder


def main_with_poison(arguments):
    """Run a command; in the tenth step the weights become NaN, on both ranks."""
    from cpprune.training.step import TrainingStep

    step = TrainingStep.__call__

    def poisoned(self, epoch, batch, number):
        stepped = step(self, epoch, batch, number)
        if number == 9:
            with torch.no_grad():
                next(self.engine.model.network.parameters()).view(-1)[0] = math.nan
        return stepped

    TrainingStep.__call__ = poisoned
    try:
        return main(arguments)
    finally:
        TrainingStep.__call__ = step


@pytest.mark.slow
def test_weights_that_become_nan(two, command, tmp_path):
    run = tmp_path / "run"
    words = [*command, "--train.epochs", "4"]
    assert two.call(main_with_poison, words, group=False) == [2, 2]
    assert "in epoch 3 the weights of" in json.loads((run / "result.json").read_text())["failed"]
    for name in ("model", "model_last"):
        assert all(torch.isfinite(t).all() for t in weights_of(run, name).values())
    assert max(path.name for path in (run / "checkpoints").iterdir()) == "step-00000008"
    answers = two.cpprune(*words)
    assert "goes on from step-00000008" in answers[0]["err"]
    assert "failed" not in json.loads((run / "result.json").read_text())
