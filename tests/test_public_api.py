"""`import cpprune`: every public name, without torch until it is used."""

import json
import logging
import signal
import subprocess
import sys

import pytest

import cpprune
from cpprune.audio.frontend import LogMel
from cpprune.config import RunConfig
from cpprune.data.config import DataConfig
from cpprune.training.config import TrainConfig
from shards.errors import UserError


def test_every_public_name_is_there():
    assert {name for name in cpprune.__all__ if not hasattr(cpprune, name)} == set()
    assert set(cpprune.__all__) <= set(dir(cpprune))
    assert cpprune.UserError is UserError
    assert isinstance(cpprune.log_mel("cpjku23"), LogMel)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        cpprune.lode  # noqa: B018


def test_importing_needs_no_torch():
    code = "import cpprune, sys; cpprune.UserError, cpprune.open_dataset; "
    subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True, timeout=60
    )


def test_training_from_python_is_that_of_the_command(scenes, tmp_path, capfd, caplog, monkeypatch):
    """It prints nothing and leaves signals alone: what it says goes to the log."""
    caplog.set_level(logging.INFO, "cpprune")
    handled = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: handled.append(number))
    fields = {"train_fraction": 0.25, "path": str(scenes)}
    result = cpprune.train(run=str(tmp_path / "a"), data=fields, train={"epochs": 1})
    assert capfd.readouterr() == ("", "")
    assert any(line.startswith("epoch 1/1") for line in caplog.messages)
    assert handled == []
    assert json.loads((tmp_path / "a/result.json").read_text()) == result
    config = RunConfig(
        run=str(tmp_path / "b"), data=DataConfig(**fields), train=TrainConfig(epochs=1)
    )
    assert cpprune.train(config)["val"] == result["val"]


def test_mistakes_in_training_from_python_are_named(tmp_path):
    with pytest.raises(TypeError, match="a RunConfig or settings, not both"):
        cpprune.train(RunConfig(), run=str(tmp_path))
    with pytest.raises(TypeError, match="epoch"):
        cpprune.train(train={"epoch": 1})
    with pytest.raises(ValueError, match=r"model\.rho=40"):
        cpprune.train(model={"rho": 40})
