"""`cpprune demo`, small; and the same road on real digits, as the configurations have it."""

import json
from pathlib import Path

import pytest

import cpprune
from cpprune.cli.demo import build

REPOSITORY = Path(__file__).parents[2]
DIGITS = Path(__file__).parents[3] / "shared/data/mnist10k"

MODELS = [
    ("small (original)", 47_028),
    ("big", 131_316),
    ("pruned", 44_784),
    ("pruned from scratch", 44_784),
    ("control 18/37/75", 44_784),
]


@pytest.mark.slow
def test_demo(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "demo"
    command = ["demo", "--out", out, "--clips", 300, "--epochs", 1]
    first = cli(*command, "--json")
    assert first.status == 0, first.err
    results = first.json
    assert results == json.loads((out / "results.json").read_text())
    assert [(row["model"], row["parameters"]) for row in results["models"]] == MODELS
    assert results["clips"] == 300
    for row in results["models"]:
        assert 0 <= row["macro_accuracy"] <= 1
        assert row["log_loss"] > 0
        assert row["per_group"].keys() == {"real", "seen", "unseen"}
        assert row["bytes"]["fp16"] == 2 * row["parameters"]
        assert cpprune.load(row["folder"]).input_shape == (1, 256, 44)
        report = cli("evaluate", row["folder"], "--data", out / "dataset", "--json").json
        assert report["macro_accuracy"] == pytest.approx(row["macro_accuracy"], abs=1e-9)
    pruned, scratch, control = results["models"][2:]
    assert pruned["macs"] == scratch["macs"] == control["macs"] == 10_141_890

    trained = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    before = (out / "results.json").read_text()
    again = cli(*command)
    assert again.status == 0
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert "epoch 1/1" not in again.err
    for model, parameters in MODELS:
        assert model in again.out
        assert f"{parameters:,}" in again.out
    assert json.loads((out / "results.json").read_text())["models"] == json.loads(before)["models"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]


def test_a_demo_that_is_stopped_says_how_it_goes_on(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("cpprune.cli.demo.build", lambda out, clips: out / "dataset")
    monkeypatch.setattr("cpprune.training.loop.train", lambda config: {"stopped": "SIGINT"})
    outcome = cli("demo", "--out", tmp_path / "demo")
    assert outcome.status == 2
    assert "the demo was stopped; the same command resumes it" in outcome.err


def test_clips_that_a_killed_demo_has_left_are_made_anew(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("shards.cli.main.main", made.append)
    left = tmp_path / "audio/audio/airport-lisbon-0-0-a.wav"
    left.parent.mkdir(parents=True)
    left.touch()
    (tmp_path / "audio/hers.txt").touch()
    build(tmp_path, 200)
    assert [words[0] for words in made] == ["synth", "build"]
    assert [path.name for path in (tmp_path / "audio").iterdir()] == ["hers.txt"]


def test_a_demo_of_other_clips_is_refused(refused, tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio/meta.csv").touch()
    (tmp_path / "demo.json").write_text('{"made_by": "cpprune demo", "clips": 300}')
    refused("demo", "--out", tmp_path, "--clips", 400, names=["300 clips", "--clips 300"])
    assert "300" in (tmp_path / "demo.json").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not DIGITS.is_dir(), reason="needs shared/data/mnist10k")
def test_digits(cli, tmp_path, monkeypatch):
    """The configurations as they are, on 10,000 digits: both networks know 97 of 100."""
    monkeypatch.chdir(tmp_path)
    build = ["--source", DIGITS, "--out", "data/mnist"]
    assert cli("shards", "build", "mnist", *build).status == 0
    configs = REPOSITORY / "configs"
    big = cli("train", "--config", configs / "mnist_big.yaml", "--json")
    assert big.status == 0, big.err
    assert big.json["parameters"] == 131_316
    init = ["--init", "runs/mnist_big/model"]
    pruned = cli("prune", "--config", configs / "mnist_prune.yaml", *init, "--json")
    assert pruned.status == 0, pruned.err
    assert pruned.json["parameters"] == 44_784
    for run in ("mnist_big", "mnist_pruned"):
        report = cli("evaluate", f"runs/{run}/model", "--data", "data/mnist", "--json").json
        assert report["clips"] == 2_000
        assert report["accuracy"] >= 0.97
        assert sum(map(sum, report["confusion"])) == 2_000
