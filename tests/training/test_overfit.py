"""The debug mode asks the teachers about its clips."""

import pytest
import torch

import shards
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
