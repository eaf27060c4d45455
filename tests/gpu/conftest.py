"""What the tests of trainings on a GPU share."""

import pytest

from cpprune.training import engine
from cpprune.training.cuda_graph import Captured

SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", 8, "--data.train_fraction", 0.25]
SETTINGS += ["--optim.name", "sgd", "--optim.lr", 1e-4, "--optim.weight_decay", 0]
SETTINGS += ["--optim.schedule", "constant", "--augment.mixstyle_p", 1, "--train.epochs", 2]


@pytest.fixture
def from_tiny(tiny_run, scenes):
    """A training from trained weights, so that small differences stay small; its folder comes last."""
    return [*SETTINGS, "--init", tiny_run / "model", "--data.path", scenes, "--run"]


@pytest.fixture
def trains(cli):
    """Runs a command that has to end well, and returns what it printed."""

    def run(*arguments):
        outcome = cli(*arguments)
        assert outcome.status == 0, outcome.err[-4000:]
        return outcome

    return run


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Let steps be captured from their second on, and compiled once; returns what was captured."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    made = []
    record = Captured._recorded

    def counted(*arguments):
        made.append(arguments)
        return record(*arguments)

    monkeypatch.setattr(Captured, "_recorded", counted)
    monkeypatch.setattr(engine, "PLAIN_STEPS", 1)
    return made
