"""One epoch on one, two, four and again one process: the clips of every batch are those of one alone."""

import json

import pytest
from run_folder import epochs_of, weights_of

# 128 clips in 14 batches of 9 and one of 2; a cut before the second epoch.
SETTINGS = ["--train.batch_size", 9, "--train.epochs", 2, "--data.record_ids", "true"]
SETTINGS += ["--optim.name", "sgd", "--optim.lr", 1e-4, "--optim.weight_decay", 0]
SETTINGS += ["--optim.schedule", "constant", "--augment.mixstyle_p", 1, "--prune.ratio", 0.3]
SETTINGS += ["--prune.start_epoch", 1]


def batches(run):
    """Return {(epoch, batch): ids} of a run, whoever trained them, the ranks' parts in rank order."""
    found = {}
    for path in sorted((run / "ids").iterdir()):
        for line in path.read_text().splitlines():
            part = json.loads(line)
            parts = found.setdefault((part["epoch"], part["batch"]), [])
            assert part["start"] == len(parts), "each part once, and none missing before it"
            parts += part["ids"]
    return found


STOP = ["--train.time_limit_minutes", 1e-9]  # several ranks ask each other every fourth step


@pytest.mark.slow
def test_from_one_to_two_to_four_to_one_within_an_epoch(cli, two, four, tiny_run, scenes, tmp_path):
    begin = ["prune", *SETTINGS, "--init", tiny_run / "model", "--data.path", scenes, "--run"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert cli(*begin, whole).status == 0
    assert "batch 2;" in cli(*begin, run, *STOP).err
    assert "batch 5;" in two.cpprune(*begin, run, *STOP)[0]["err"]
    assert "batch 9;" in four.cpprune(*begin, run, *STOP)[0]["err"]
    outcome = cli(*begin, run)
    assert "goes on from step-00000008 (epoch 1, batch 9)" in outcome.err
    assert batches(run) == batches(whole)
    ids = [i for (epoch, _), part in batches(run).items() if epoch == 0 for i in part]
    assert sorted(ids) == sorted(set(ids))
    assert len(ids) == 128
    for one, other in zip(epochs_of(whole), epochs_of(run), strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert other["val_log_loss"] == pytest.approx(one["val_log_loss"], rel=1e-3)
    shapes = [{n: t.shape for n, t in weights_of(r).items()} for r in (whole, run)]
    assert shapes[0] == shapes[1]
