"""Quantisation-aware training is the same on any number of processes."""

import pytest
import torch
from run_folder import metrics, tensors

from cpprune.models.quantized import RANGES


@pytest.mark.slow
def test_two_processes_train_as_one(cli, two, tiny_run, scenes, tmp_path):
    # 25 clips in batches of 8: one process has no row of the last one.
    settings = ["--init", tiny_run / "model", "--data.path", scenes, "--data.train_fraction", 0.2]
    settings += ["--train.batch_size", 8, "--train.epochs", 2, "--quantize.start_epoch", 1]
    settings += ["--optim.name", "sgd", "--optim.lr", 1e-3, "--optim.schedule", "constant"]
    settings += ["--train.ema_decay", 0.9, "--train.global_batch_norm", "true"]
    words = ["train", *settings, "--run"]
    assert cli(*words, tmp_path / "alone").status == 0
    two.cpprune(*words, tmp_path / "both")
    (last,) = sorted((tmp_path / "alone" / "checkpoints").iterdir())[-1:]
    for file in ("network", "average"):
        one, other = (
            tensors(tmp_path / name / "checkpoints" / last.name / f"{file}.safetensors")
            for name in ("alone", "both")
        )
        assert RANGES in one
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)
    alone, both = (metrics(tmp_path / name)[-1] for name in ("alone", "both"))
    torch.testing.assert_close(alone["val_log_loss"], both["val_log_loss"], rtol=1e-3, atol=0)
