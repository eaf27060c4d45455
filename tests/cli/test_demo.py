"""`cpprune demo`, small; and the same road on real digits, as the configurations have it."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import cpprune
import shards
from cpprune.cli.demo import _exports_text, build, export_pruned
from cpprune.runs.records import StoppedRun

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

    file, folder = results["exports"]
    assert file["file"] == str(out / "pruned/pruned-int8.onnx")
    assert file["bytes"]["file"] == Path(file["file"]).stat().st_size
    assert (out / "pruned/pruned-int8-c/test.c").is_file()
    assert folder["bytes"]["ram"] > 0
    for made in results["exports"]:
        assert made["check"]["split"] == "test"
        assert made["check"]["agreement"] >= 0.9

    trained = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    before = (out / "results.json").read_text()
    again = cli(*command)
    assert again.status == 0
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert "epoch 1/1" not in again.err
    for model, parameters in MODELS:
        assert model in again.out
        assert f"{parameters:,}" in again.out
    assert f"pruned-int8.onnx  {file['bytes']['file']:,}" in again.out
    assert "pruned-int8-c" in again.out
    assert json.loads((out / "results.json").read_text())["models"] == json.loads(before)["models"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]


def without(monkeypatch, *names):
    """Act as if these packages were not installed."""
    real = cpprune.export.target.find_spec
    monkeypatch.setattr(
        "cpprune.export.target.find_spec", lambda name: None if name in names else real(name)
    )


@pytest.mark.slow
def test_what_is_exported_is_measured(tiny_run, scenes, tmp_path, monkeypatch):
    """Without the generator of C there is a line on that, and ONNX all the same."""
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    without(monkeypatch, "emx_onnx_cgen")
    (made,), lacking = export_pruned(tmp_path, scenes)
    assert lacking == "cpprune export --to c needs emx_onnx_cgen: pip install 'cpprune[export-c]'"
    file = tmp_path / "pruned-int8.onnx"
    assert (made.file, made.precision) == (str(file), "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "pruned-int8.onnx"]
    split = shards.open_dataset(scenes).split("test")
    clips = split.fetch(range(len(split)))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"waveform": np.float32(clips / 32768)})
    right = (logits.argmax(1) == split.labels).mean()
    cells = _exports_text([made]).splitlines()[2].split()
    size = f"{file.stat().st_size:,}"
    assert cells[:5] == ["pruned-int8.onnx", size, "–", str(len(split)), f"{right:.4f}"]


def test_without_the_extra_one_line_says_how_to_get_it(tiny_run, scenes, tmp_path, monkeypatch):
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    without(monkeypatch, "onnx", "onnxscript", "onnxruntime", "emx_onnx_cgen")
    made, lacking = export_pruned(tmp_path, scenes)
    assert made == []
    assert "\n" not in lacking
    assert lacking.endswith("emx_onnx_cgen: pip install 'cpprune[export-c]'")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_demo_that_is_stopped_says_how_it_goes_on(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("cpprune.cli.demo.build", lambda out, clips: out / "dataset")
    stopped = StoppedRun(run="R", stopped="SIGINT", epoch=0, batch=1)
    monkeypatch.setattr("cpprune.training.loop.train", lambda config, **_: stopped)
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
    """The configurations with a third of their epochs, on 10,000 digits: both know 97 of 100."""
    monkeypatch.chdir(tmp_path)
    build = ["--source", DIGITS, "--out", "data/mnist"]
    assert cli("shards", "build", "mnist", *build).status == 0
    configs = REPOSITORY / "configs"
    big = cli("train", "--config", configs / "mnist_big.yaml", "--train.epochs", 5, "--json")
    assert big.status == 0, big.err
    assert big.json["parameters"] == 131_316
    init = ["--init", "runs/mnist_big/model", "--train.epochs", 4]
    pruned = cli("prune", "--config", configs / "mnist_prune.yaml", *init, "--json")
    assert pruned.status == 0, pruned.err
    assert pruned.json["parameters"] == 44_784
    for run in ("mnist_big", "mnist_pruned"):
        report = cli("evaluate", f"runs/{run}/model", "--data", "data/mnist", "--json").json
        assert report["clips"] == 2_000
        assert report["accuracy"] >= 0.97
        assert sum(map(sum, report["confusion"])) == 2_000
