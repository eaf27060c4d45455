"""Real recordings: letters and syllables spoken in ten languages, from Debian's klettres-data."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cpprune.cli.main import main

RECORDINGS = Path("/usr/share/klettres")
LANGUAGES = ("de", "es", "hu", "it", "lt", "ml", "nds", "pt_BR", "ru", "uk")


@pytest.mark.slow
def test_languages_are_told_apart_after_pruning(tmp_path, capsys):
    if not RECORDINGS.is_dir():
        assert "CI" not in os.environ, "klettres-data is not installed"
        pytest.skip("needs Debian's klettres-data")
    for language in LANGUAGES:
        shutil.copytree(RECORDINGS / language, tmp_path / "source" / language)
    data, big, pruned = (str(tmp_path / name) for name in ("data", "big", "pruned"))
    source = str(tmp_path / "source")
    assert main(["shards", "build", "folder", "--source", source, "--out", data]) == 0
    assert main(["shards", "verify", data]) == 0
    common = ["--data.path", data, "--train.batch_size", "64"]
    common += ["--optim.schedule", "cosine", "--optim.weight_decay", "1e-4"]
    settings = ["--train.epochs", "8", "--optim.lr", "4e-3", "--optim.warmup_epochs", "1"]
    assert main(["train", "--run", big, *common, *settings]) == 0
    settings = ["--train.epochs", "5", "--optim.lr", "2e-3", "--optim.warmup_epochs", "0"]
    settings += ["--init", f"{big}/model", "--prune.ratio", "0.41"]
    assert main(["prune", "--run", pruned, *common, *settings]) == 0
    capsys.readouterr()
    assert main(["evaluate", f"{pruned}/model", "--data", data, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == 44_784
    # Chance is 0.1 for the macro accuracy.
    assert report["macro_accuracy"] > 0.5
