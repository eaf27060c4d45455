"""The debug mode asks the teachers about its clips."""

import pytest
import torch

import shards
from cpprune.data.config import DataConfig
from cpprune.data.loader import TrainingLoader
from cpprune.models import artifact
from shards.errors import UserError


@pytest.mark.parametrize("mode", ["clean", "on_the_fly"])
def test_debug_asks_the_teachers(cli, scenes, tiny_run, tmp_path, mode, monkeypatch):
    monkeypatch.setattr("cpprune.training.overfit.STEPS", 1)
    words = ["train", "--debug", "--data.path", scenes, "--run", tmp_path / "run"]
    words += ["--model.widths", "[6, 8, 10]", "--distill.mode", mode, "--distill.teachers"]
    split = shards.open_dataset(scenes).split("train")
    places = [round(127 * k / 15) for k in range(16)]
    logits = artifact.load(tiny_run / "model_last").logits(torch.from_numpy(split.fetch(places)))
    right = sum(logits.argmax(1).numpy() == split.labels[places])
    outcome = cli(*words, f"[{tiny_run / 'model_last'}]")
    assert f"teachers  right about {right} of 16 clips" in outcome.out
    with pytest.raises(UserError, match="nowhere"):  # --debug shows where an error comes from
        cli(*words, "[nowhere]")
    pruned = ["--prune.ratio", 0.5, "--prune.start_epoch", 1, "--distill.mode", "clean"]
    assert "uncut teaches after" in cli(*words, "[uncut]", *pruned).out


def test_debug_overfits_clips_that_are_trained_on(cli, scenes, monkeypatch):
    """Those of one value, of a part of the training split."""
    dataset, seen = shards.open_dataset(scenes), []

    def fetch(split, positions):
        seen.append(split.ids[positions])
        return fetched(split, positions)

    fetched = shards.Split.fetch
    monkeypatch.setattr("cpprune.training.overfit.STEPS", 1)
    monkeypatch.setattr(shards.Split, "fetch", fetch)
    words = ["train", "--debug", "--data.path", scenes, "--model.widths", "[6, 8, 10]"]
    cli(*words, "--data.only", "device=b", "--data.train_fraction", 0.5)
    (rows,) = seen
    trained = TrainingLoader(
        dataset,
        DataConfig(only="device=b", train_fraction=0.5),
        1,
        0,
        rank=0,
        world=1,
        device=torch.device("cpu"),
    ).rows
    assert 0 < len(trained) < 128
    assert set(rows) <= set(trained)
    with pytest.raises(UserError, match="device=x"):
        cli(*words, "--data.only", "device=x")
