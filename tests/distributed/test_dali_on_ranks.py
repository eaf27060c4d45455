"""The front end of DALI on two processes: the clips of one, and the same bits after a stop."""

import os

import pytest
import torch
from run_folder import assert_same_run, ids_of, weights_of

pytestmark = pytest.mark.dali
if "CI" not in os.environ:
    pytest.importorskip("nvidia.dali")

SETTINGS = ["--data.train_fraction", 0.25, "--train.batch_size", 5, "--data.record_ids", "true"]
SETTINGS += ["--train.epochs", 1, "--optim.name", "sgd", "--optim.weight_decay", 0]
SETTINGS += ["--optim.schedule", "constant", "--optim.lr", 1e-4, "--augment.mixstyle_p", 1]
SETTINGS += ["--augment.roll", 500, "--model.widths", "[6, 8, 10]"]


@pytest.mark.slow
def test_two_processes_train_as_one(cli, two, scenes, tmp_path):
    command = ["train", *SETTINGS, "--features.backend", "dali", "--data.path", scenes, "--run"]
    assert cli(*command, tmp_path / "alone").status == 0
    two.cpprune(*command, tmp_path / "whole")
    stop = ["--train.time_limit_minutes", 1e-9]
    outcome = two.cpprune(*command, tmp_path / "run", *stop)[0]
    assert "stopped by the time limit at epoch 1, batch 5" in outcome["err"]
    two.cpprune(*command, tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    of_ranks = [ids_of(tmp_path / "run", rank) for rank in (0, 1)]
    for alone, first, second in zip(ids_of(tmp_path / "alone"), *of_ranks, strict=True):
        assert first["ids"] + second["ids"] == alone["ids"]
    ours, theirs = weights_of(tmp_path / "alone"), weights_of(tmp_path / "run")
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-5)
