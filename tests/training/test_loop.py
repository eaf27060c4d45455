"""Runs from their first step to their last: what they train, and what they leave in their folder."""

import json
import math
from importlib.metadata import version

import numpy as np
import pytest
import soundfile
import torch
from marks import slow
from run_folder import assert_same_run, epochs_of, ids_of, weights_of

import cpprune
from cpprune.config import RunConfig
from cpprune.data.config import DataConfig
from cpprune.models.config import ModelConfig
from cpprune.training.config import OptimConfig, TrainConfig
from cpprune.training.engine import Forward
from cpprune.training.loop import train

# --- the folder of a run ------------------------------------------------------------------------------


def test_metrics_have_one_line_an_epoch(tiny_run):
    lines = epochs_of(tiny_run)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert [line["step"] for line in lines] == [8, 16, 24, 32]
    assert {line["val_clips"] for line in lines} == {22}
    assert {line["lr"] for line in lines} == {1e-2}
    assert all(0 < line["train_loss"] < 5 for line in lines)
    raw = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["clips_per_second"] > 0 for line in raw)
    assert [line["seconds"] for line in raw] == sorted(line["seconds"] for line in raw)


def test_figures_of_the_last_epoch_are_those_of_evaluate(cli, tiny_run, scenes):
    last = epochs_of(tiny_run)[-1]
    report = cli(
        "evaluate", tiny_run / "model_last", "--data", scenes, "--split", "val", "--json"
    ).json
    assert report["log_loss"] == pytest.approx(last["val_log_loss"], abs=1e-6)
    assert report["macro_accuracy"] == pytest.approx(last["val_macro_accuracy"], abs=1e-6)


@pytest.mark.parametrize("monitor", ["macro_accuracy", slow("log_loss")])
def test_the_best_model_is_that_of_the_best_epoch(cli, tiny, scenes, tmp_path, monitor):
    for seed in range(20):
        run = tmp_path / str(seed)
        settings = [*tiny, "--data.path", scenes, "--run", run, "--train.epochs", 4]
        settings += ["--data.train_fraction", 0.25, "--optim.lr", 5e-2, "--seed", seed]
        result = cli("train", *settings, "--train.monitor", monitor, "--json").json
        figures = [line[f"val_{monitor}"] for line in epochs_of(run)]
        best = figures.index(max(figures) if monitor == "macro_accuracy" else min(figures))
        if best not in (0, 3):  # the first or the last would prove little
            break
    assert best in (1, 2)
    assert result["epoch"] == best
    assert cpprune.load(run / "model").metadata["provenance"]["epoch"] == best
    report = cli("evaluate", run / "model", "--data", scenes, "--split", "val", "--json").json
    assert report["log_loss"] == pytest.approx(epochs_of(run)[best]["val_log_loss"], abs=1e-6)
    assert report["log_loss"] != pytest.approx(epochs_of(run)[-1]["val_log_loss"], abs=1e-6)


def test_what_a_run_folder_holds(tiny_run, scenes):
    import yaml

    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert config["model"]["widths"] == [6, 8, 10]
    assert config["optim"]["schedule"] == "constant"
    environment = json.loads((tiny_run / "environment.json").read_text())
    assert environment["packages"]["torch"] == version("torch")
    assert (tiny_run / "model/model.json").is_file()
    assert (tiny_run / "model_last/model.safetensors").is_file()
    hidden = [p.name for p in tiny_run.iterdir() if p.name.startswith(".")]
    assert hidden == [".lock"]
    description = json.loads((tiny_run / "model/model.json").read_text())
    dataset = json.loads((scenes / "dataset.json").read_text())
    assert description["provenance"]["dataset"] == dataset["sha256"]


# --- what is trained ----------------------------------------------------------------------------------


def configuration(scenes, run, **changes):
    """The tiny network, one epoch of four batches, for `train` as a function."""
    return RunConfig(
        run=str(run),
        data=changes.pop("data", DataConfig(path=str(scenes), train_fraction=0.5)),
        model=ModelConfig(widths=[6, 8, 10]),
        optim=changes.pop("optim", OptimConfig(schedule="constant", lr=1e-2)),
        train=changes.pop("train", TrainConfig(epochs=1, batch_size=16)),
        **changes,
    )


def test_a_run_is_a_function_of_its_seed(scenes, tmp_path):
    prints = [
        train(configuration(scenes, tmp_path / name, seed=seed)).fingerprint
        for name, seed in (("one", 1), ("again", 1), ("two", 2))
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    "changes", [{"workers": 1}, {"in_memory": "host"}, {"in_memory": "device"}]
)
def test_how_clips_are_read_changes_nothing(scenes, tmp_path, changes):
    data = DataConfig(path=str(scenes), train_fraction=0.5, **changes)
    train(configuration(scenes, tmp_path / "one"))
    train(configuration(scenes, tmp_path / "other", data=data))
    assert_same_run(tmp_path / "one", tmp_path / "other")


def test_an_epoch_has_every_clip_once_in_another_order(scenes, tmp_path):
    data = DataConfig(path=str(scenes), record_ids=True)
    settings = TrainConfig(epochs=2, batch_size=24)
    train(configuration(scenes, tmp_path / "run", data=data, train=settings))
    lines = ids_of(tmp_path / "run")
    assert [(line["epoch"], line["batch"]) for line in lines] == [
        (epoch, batch) for epoch in (0, 1) for batch in range(6)
    ]
    assert [len(line["ids"]) for line in lines] == [24, 24, 24, 24, 24, 8] * 2
    first, second = (
        [i for line in lines if line["epoch"] == e for i in line["ids"]] for e in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(128))
    assert first != second


def test_micro_batches_train_on_the_same_batches(scenes, tmp_path, monkeypatch):
    sizes = []
    forward = Forward.forward

    def counting(self, x):
        sizes.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Forward, "forward", counting)
    data = DataConfig(path=str(scenes), train_fraction=0.5, record_ids=True)
    results = []
    for most, expected in ((0, [16]), (8, [8, 8]), (7, [7, 7, 2]), (99, [16])):
        settings = TrainConfig(epochs=1, batch_size=16, micro_batch_size=most)
        run = tmp_path / str(most)
        sizes.clear()
        train(configuration(scenes, run, data=data, train=settings))
        assert sizes == 4 * expected
        results.append((ids_of(run), epochs_of(run)[0]))
    for lines, epoch in results[1:]:
        assert lines == results[0][0]
        assert epoch["step"] == results[0][1]["step"] == 4
        # Only the batch statistics differ: the first loss is ln 10 and the others are close.
        assert epoch["train_loss"] == pytest.approx(results[0][1]["train_loss"], rel=0.05)


@pytest.mark.parametrize("most", [1, 5])
def test_a_short_last_batch_in_micro_batches(cli, scenes, tmp_path, most):
    """The last of the 10 batches has 2 clips."""
    data = DataConfig(path=str(scenes))
    settings = TrainConfig(epochs=1, batch_size=14, micro_batch_size=most)
    train(configuration(scenes, tmp_path / "run", data=data, train=settings))
    weights = weights_of(tmp_path / "run")
    assert [name for name, t in weights.items() if not torch.isfinite(t).all()] == []
    assert math.isfinite(epochs_of(tmp_path / "run")[0]["val_log_loss"])


def test_reduce_on_plateau_follows_the_validation_loss(cli, scenes, tmp_path, stop_at):
    optim = ["--optim.schedule", "reduce_on_plateau", "--optim.plateau_patience", 0]
    optim += ["--optim.plateau_factor", 0.5, "--optim.lr", 3e-2]
    settings = ["--model.widths", "[6, 8, 10]", "--data.path", scenes, "--data.train_fraction"]
    command = ["train", *settings, 0.25, *optim, "--train.batch_size", 16, "--run", tmp_path]
    command += ["--train.epochs", 8]
    with stop_at(5 * 3 + 2):  # the history of losses has to survive
        assert cli(*command).status == 130
    assert cli(*command).status == 0

    lines = epochs_of(tmp_path)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-2)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min", factor=0.5, patience=0, threshold=1e-4
    )
    expected = []
    for line in lines:
        expected.append(optimizer.param_groups[0]["lr"])
        reference.step(line["val_log_loss"])
    assert [line["lr"] for line in lines] == pytest.approx(expected)
    assert len(set(expected)) > 1, "the learning rate has to fall for this to be a test"


def test_a_small_network_learns(cli, scenes, tmp_path):
    settings = ["--model.widths", "[8, 12, 16]", "--train.batch_size", 8, "--train.epochs", 12]
    settings += ["--optim.schedule", "constant", "--optim.lr", 1e-2, "--optim.weight_decay", 0]
    settings += ["--augment.mixstyle_p", 0, "--data.path", scenes, "--data.train_fraction", 0.25]
    assert cli("train", *settings, "--run", tmp_path).status == 0
    losses = [line["train_loss"] for line in epochs_of(tmp_path)]
    assert losses[0] == pytest.approx(math.log(10), abs=0.3)
    assert losses[-1] < 0.87 * losses[0]


def test_bf16_trains_and_keeps_float32_weights(scenes, tmp_path):
    settings = TrainConfig(epochs=1, batch_size=16, precision="bf16")
    train(configuration(scenes, tmp_path / "bf16", train=settings))
    train(configuration(scenes, tmp_path / "fp32"))
    narrow, wide = epochs_of(tmp_path / "bf16")[0], epochs_of(tmp_path / "fp32")[0]
    assert narrow["train_loss"] != wide["train_loss"]
    assert narrow["train_loss"] == pytest.approx(wide["train_loss"], rel=0.02)
    weights = weights_of(tmp_path / "bf16")
    assert {t.dtype for name, t in weights.items() if "num_batches" not in name} == {torch.float32}


def test_a_loss_that_is_not_finite_ends_the_run(cli, tiny, scenes, tmp_path):
    settings = [*tiny, "--data.path", scenes, "--data.train_fraction", 0.25, "--run", tmp_path]
    settings += ["--optim.name", "sgd", "--optim.lr", "1e20", "--train.epochs", 3]
    settings += ["--optim.weight_decay", "1e10"]
    outcome = cli("train", *settings)
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("cpprune: error: ")
    assert "not finite" in last
    assert "optim.lr" in last
    assert "Traceback" not in outcome.err


def test_fine_tuning_starts_from_the_weights_given(cli, tiny_run, scenes, tmp_path):
    settings = ["--init", tiny_run / "model", "--data.path", scenes, "--train.epochs", 1]
    settings += ["--optim.lr", 1e-12, "--optim.schedule", "constant", "--run", tmp_path]
    assert cli("train", *settings, "--optim.weight_decay", 0).status == 0
    before = weights_of(tiny_run)
    after = weights_of(tmp_path)
    for name in before:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_debug_overfits_one_batch_and_says_so(cli, tiny, scenes, tmp_path):
    run = tmp_path / "run"
    settings = ["--data.path", scenes, "--run", run, "--optim.lr", 1e-2]
    outcome = cli("train", *settings, "--model.widths", "[8, 12, 16]", "--debug")
    assert outcome.status == 0
    assert "near zero" in outcome.out
    assert "(16, 32000)" in outcome.out
    assert "stage3.block2.conv2" in outcome.out
    assert not run.exists()


@pytest.mark.slow
def test_debug_says_when_a_network_cannot_learn(cli, tiny, tmp_path):
    """Half of the clips are labelled wrongly: each is there under both names."""
    for name in ("hum", "hiss"):
        (tmp_path / "audio" / name).mkdir(parents=True)
        for number in range(10):
            wave = np.random.default_rng(number).normal(0, 0.1, 32_000)
            soundfile.write(tmp_path / f"audio/{name}/{number}.wav", wave, 32_000)
    dataset = ["--source", tmp_path / "audio", "--out", tmp_path / "dataset", "--workers", 1]
    assert cli("shards", "build", "folder", *dataset, "--fractions", "1,0,0").status == 0
    settings = [*tiny, "--data.path", tmp_path / "dataset", "--run", tmp_path / "run"]
    outcome = cli("train", *settings, "--debug")
    assert outcome.status == 1
    assert "look at the labels" in outcome.err
    assert "near zero" not in outcome.out
    assert not (tmp_path / "run").exists()
