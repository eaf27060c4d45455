"""Runs from their first step to their last: what they leave, and that a stop changes nothing of it."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

import cpprune
from cpprune.config import RunConfig, TrainConfig
from cpprune.data import DataConfig
from cpprune.models.registry import ModelConfig
from cpprune.optim import OptimConfig
from cpprune.trainer import train

TIMES = {"seconds", "clips_per_second"}
STEPS = {  # parameters of the big network after each event
    1: [44_784],
    3: [96_452, 69_388, 44_784],
    5: [109_054, 90_424, 74_684, 59_414, 44_784],
}


def metrics(run):
    """Return the lines of metrics.jsonl, without what only the clock knows."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def epochs_of(run):
    return [line for line in metrics(run) if "event" not in line]


def events_of(run):
    return [line for line in metrics(run) if line.get("event") == "prune"]


def tensors(path):
    return {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_same_run(one, other):
    """Fail unless two runs hold the same bits: models, last checkpoint, figures of every epoch."""
    assert metrics(one) == metrics(other)
    last = max((one / "checkpoints").iterdir()).name
    for name in (
        "model/model.safetensors",
        "model_last/model.safetensors",
        f"checkpoints/{last}/network.safetensors",
        f"checkpoints/{last}/optimizer.safetensors",
    ):
        assert equal(tensors(one / name), tensors(other / name)), name
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]


# --- pruning as an event of a run ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "steps"),
    [
        *(("magnitude", steps) for steps in (1, 3, 5)),
        *(("bn_scale", steps) for steps in (1, 3)),
        *(("group_norm", steps) for steps in (1, 3)),
        pytest.param("bn_scale", 5, marks=pytest.mark.slow),
        pytest.param("group_norm", 5, marks=pytest.mark.slow),
    ],
)
def test_big_is_pruned_to_44784_parameters(cli, big_model, scenes, tmp_path, criterion, steps):
    run = tmp_path / "run"
    settings = ["--init", big_model, "--data.path", scenes, "--data.split_fraction", 0.12]
    settings += ["--train.batch_size", 16, "--train.epochs", steps, "--run", run]
    settings += ["--prune.ratio", 0.41, "--prune.steps", steps, "--prune.criterion", criterion]
    result = cli("prune", *settings, "--json").json
    assert result["parameters"] == 44_784
    assert result["macs"] == 10_141_890
    assert [event["parameters"] for event in events_of(run)] == STEPS[steps]
    assert [event["epoch"] for event in events_of(run)] == list(range(steps))
    assert [line["parameters"] for line in epochs_of(run)] == STEPS[steps]
    # Only a model of the final size can be the best.
    model = cpprune.load(run / "model")
    assert sum(p.numel() for p in model.network.parameters()) == 44_784
    assert model.about["provenance"]["epoch"] == steps - 1
    widths = json.loads((run / "model/model.json").read_text())["widths"]
    assert set(widths.values()) == {18, 37, 75}
    start = cpprune.load(big_model)
    assert model.features.spec == start.features.spec


def test_pruning_keeps_the_weights_of_the_channels_that_stay(cli, tiny_run, scenes, tmp_path):
    settings = ["--init", tiny_run / "model", "--data.path", scenes, "--data.split_fraction", 0.1]
    settings += ["--train.batch_size", 16, "--train.epochs", 1, "--optim.lr", 1e-12]
    settings += ["--optim.weight_decay", 0, "--prune.ratio", 0.5, "--run", tmp_path / "run"]
    assert cli("prune", *settings).status == 0
    (plan_file,) = (tmp_path / "run/plans").iterdir()
    plan = json.loads(plan_file.read_text())
    first = next(group for group in plan["groups"] if group["layer"] == "stage1.block1.conv1")
    before = tensors(tiny_run / "model/model.safetensors")["stage1.block1.conv1.weight"]
    after = tensors(tmp_path / "run/model/model.safetensors")["stage1.block1.conv1.weight"]
    inputs = next(group for group in plan["groups"] if "in_c.0" in group["layer"])["keep"]
    torch.testing.assert_close(after, before[first["keep"]][:, inputs], rtol=1e-4, atol=1e-6)
    # By hand: magnitude keeps the channels with the largest mean absolute weight of the group.
    assert first["keep"] == sorted(first["keep"])
    assert len(first["keep"]) == 3


@pytest.mark.parametrize("criterion", ["magnitude", "group_norm"])
def test_pruning_from_scratch(cli, scenes, tmp_path, criterion):
    run = tmp_path / "run"
    settings = ["--data.path", scenes, "--data.split_fraction", 0.12, "--train.batch_size", 16]
    settings += ["--train.epochs", 1, "--prune.ratio", 0.41, "--prune.criterion", criterion]
    result = cli("prune", *settings, "--run", run, "--json").json
    assert result["parameters"] == 44_784
    assert events_of(run)[0]["parameters_before"] == 131_316
    assert epochs_of(run)[0]["train_loss"] == pytest.approx(math.log(10), abs=0.2)


def test_a_criterion_that_cannot_score_an_untrained_network(cli, tiny, scenes, tmp_path):
    settings = [*tiny, "--data.path", scenes, "--data.split_fraction", 0.2, "--train.epochs", 1]
    settings += ["--run", tmp_path / "run", "--prune.ratio", 0.5]
    outcome = cli("prune", *settings, "--prune.criterion", "bn_scale")
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith("cpprune: error: prune.criterion=bn_scale")
    # Nothing stands in the way of doing it right.
    assert cli("prune", *settings).status == 0


def test_stages_that_become_equally_wide(cli, tiny, scenes, tmp_path):
    """6 and 7 channels are both cut to 3: the shortcut between the stages is still there."""
    run = tmp_path / "run"
    settings = [*tiny, "--model.widths", "[6, 7, 10]", "--data.path", scenes, "--run", run]
    settings += ["--data.split_fraction", 0.2, "--train.epochs", 2, "--prune.ratio", 0.5]
    assert cli("prune", *settings, "--prune.start_epoch", 1).status == 0
    model = cpprune.load(run / "model")
    assert "stage2.block1.shortcut.conv.weight" in model.network.state_dict()


# --- a stop and a resumption --------------------------------------------------------------------------

# 32 clips in 4 batches, then 22 to validate: 5 reads an epoch. Events at epochs 1 and 2.
SETTINGS = [
    *("--data.split_fraction", 0.25, "--train.batch_size", 8, "--train.epochs", 4),
    *("--model.widths", "[6, 8, 10]", "--augment.mixstyle_p", 0.6, "--augment.mixup_alpha", 0.3),
    *("--optim.lr", 3e-3, "--optim.schedule", "cosine", "--optim.warmup_epochs", 1),
    *("--prune.ratio", 0.5, "--prune.steps", 2, "--prune.start_epoch", 1),
]


@pytest.fixture(scope="module")
def whole_run(call, scenes, tmp_path_factory):
    """The run that nobody stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call("prune", *SETTINGS, "--data.path", scenes, "--run", run) == 0
    return run


def test_the_run_that_is_compared_with_is_one(whole_run):
    assert [event["epoch"] for event in events_of(whole_run)] == [1, 2]
    assert len(epochs_of(whole_run)) == 4
    best, last = (
        tensors(whole_run / f"{name}/model.safetensors") for name in ("model", "model_last")
    )
    assert best.keys() == last.keys()
    assert len(list((whole_run / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize(
    ("stops", "every", "checkpoint"),
    [
        ([1], 0, None),  # before anything
        ([3], 0, None),  # in the first epoch
        ([3], 1, "step-00000002"),
        ([5], 1, "step-00000003"),  # while validating
        ([6], 0, "step-00000004"),  # between the first event and the first step after it
        ([8], 1, "step-00000006"),  # after the first event
        ([9], 3, "step-00000006"),  # with a step to do again
        ([11], 1, "step-00000008"),  # between the second event and the first step after it
        ([13], 1, "step-00000010"),
        ([20], 0, "step-00000012"),  # while validating for the last time
        ([4, 4, 4, 4, 4, 4], 1, "step-00000013"),  # before, between and after the events
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(
    cli, whole_run, scenes, stop_at, tmp_path, stops, every, checkpoint
):
    run = tmp_path / "run"
    command = ["prune", *SETTINGS, "--data.path", scenes, "--run", run]
    command += ["--train.checkpoint_steps", every]
    for number in stops:
        with stop_at(number):
            assert cli(*command).status == 130
    outcome = cli(*command)
    assert outcome.status == 0
    if checkpoint:
        assert f"goes on from {checkpoint} " in outcome.err
    else:
        assert "goes on from" not in outcome.err
    assert_same_run(run, whole_run)


@pytest.mark.parametrize(
    ("name", "number"), [("step-", 1), ("step-", 3), ("model", 1), ("model_last", 3)]
)
def test_a_stop_while_something_is_written(
    cli, whole_run, scenes, tmp_path, monkeypatch, name, number
):
    """Stopped when a new folder is about to take its place."""
    run = tmp_path / "run"
    command = ["prune", *SETTINGS, "--data.path", scenes, "--run", run]
    rename, seen = Path.rename, []

    def renaming(self, target):
        there = Path(target).name
        if there == name or (name == "step-" and there.startswith(name)):
            seen.append(there)
            if len(seen) == number:
                raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renaming)
        assert cli(*command).status == 130
    assert len(seen) == number
    assert cli(*command).status == 0
    assert_same_run(run, whole_run)


@pytest.mark.parametrize(
    "checkpoint",
    ["step-00000006", *(pytest.param(f"step-{n:08d}", marks=pytest.mark.slow) for n in (2, 11))],
)
def test_a_killed_process(cli, whole_run, scenes, tmp_path, checkpoint):
    """SIGKILL, before, between and after the events; checkpoints at every step."""
    run = tmp_path / "run"
    command = ["prune", *SETTINGS, "--data.path", scenes, "--run", run]
    command = [str(word) for word in (*command, "--train.checkpoint_steps", 1)]
    with subprocess.Popen(
        [sys.executable, "-m", "cpprune.cli", *command],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        deadline = time.monotonic() + 60
        while not (run / "checkpoints" / checkpoint).exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (run / "result.json").exists()
    outcome = cli(*command)
    assert outcome.status == 0
    assert "goes on from step-" in outcome.err
    assert_same_run(run, whole_run)


def test_what_changes_nothing_may_change_when_a_run_goes_on(
    cli, whole_run, scenes, stop_at, tmp_path
):
    """The run folder moves, so does the dataset, and clips are kept in memory."""
    command = ["prune", *SETTINGS]
    before = ["--data.path", scenes, "--run", tmp_path / "before", "--train.checkpoint_steps", 2]
    with stop_at(14):
        assert cli(*command, *before).status == 130
    (tmp_path / "before").rename(tmp_path / "after")
    shutil.copytree(scenes, tmp_path / "moved")
    after = ["--data.path", tmp_path / "moved", "--run", tmp_path / "after"]
    after += ["--data.resident", "host", "--train.keep_checkpoints", 1]
    outcome = cli(*command, *after)
    assert outcome.status == 0
    assert "goes on from step-00000010" in outcome.err
    assert_same_run(tmp_path / "after", whole_run)
    assert len(list((tmp_path / "after/checkpoints").iterdir())) == 1


def test_a_finished_run_is_not_trained_again(cli, whole_run, scenes, tmp_path, stop_at):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    before = (run / "model/model.safetensors").read_bytes()
    with pytest.raises(AssertionError, match="over after 0 reads"), stop_at(1):
        result = cli("prune", *SETTINGS, "--data.path", scenes, "--run", run, "--json").json
    assert (
        result["fingerprint"] == json.loads((whole_run / "result.json").read_text())["fingerprint"]
    )
    assert (run / "model/model.safetensors").read_bytes() == before
    assert metrics(run) == metrics(whole_run)


def test_resume_never_begins_again(cli, whole_run, scenes, stop_at, tmp_path):
    run = tmp_path / "run"
    command = ["prune", *SETTINGS, "--data.path", scenes, "--run", run]
    with stop_at(12):
        assert cli(*command, "--seed", 9).status == 130
    outcome = cli(*command, "--resume", "never")
    assert outcome.status == 0
    assert "goes on from" not in outcome.err
    assert_same_run(run, whole_run)


def test_checkpoints_are_as_many_as_asked_for(cli, tiny, scenes, tmp_path):
    settings = [*tiny, "--data.path", scenes, "--run", tmp_path, "--train.epochs", 2]
    settings += ["--data.split_fraction", 0.5, "--train.checkpoint_steps", 1]
    assert cli("train", *settings, "--train.keep_checkpoints", 3).status == 0
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000007", "step-00000008"]


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


@pytest.mark.parametrize("monitor", ["macro_accuracy", "log_loss"])
def test_the_best_model_is_that_of_the_best_epoch(cli, tiny, scenes, tmp_path, monitor):
    for seed in range(20):
        run = tmp_path / str(seed)
        settings = [*tiny, "--data.path", scenes, "--run", run, "--train.epochs", 4]
        settings += ["--data.split_fraction", 0.25, "--optim.lr", 5e-2, "--seed", seed]
        result = cli("train", *settings, "--train.monitor", monitor, "--json").json
        figures = [line[f"val_{monitor}"] for line in epochs_of(run)]
        best = figures.index(max(figures) if monitor == "macro_accuracy" else min(figures))
        if best not in (0, 3):  # the first or the last would prove little
            break
    assert best in (1, 2)
    assert result["epoch"] == best
    assert cpprune.load(run / "model").about["provenance"]["epoch"] == best
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
    leftovers = [p.name for p in tiny_run.iterdir() if p.name.startswith(".")]
    assert leftovers == []
    description = json.loads((tiny_run / "model/model.json").read_text())
    dataset = json.loads((scenes / "dataset.json").read_text())
    assert description["provenance"]["dataset"] == dataset["sha256"]


# --- what is trained ----------------------------------------------------------------------------------


def configuration(scenes, run, **changes):
    """The tiny network, one epoch of four batches, for `train` as a function."""
    return RunConfig(
        run=str(run),
        data=changes.pop("data", DataConfig(path=str(scenes), split_fraction=0.5)),
        model=ModelConfig(widths=[6, 8, 10]),
        optim=changes.pop("optim", OptimConfig(schedule="constant", lr=1e-2)),
        train=changes.pop("train", TrainConfig(epochs=1, batch_size=16)),
        **changes,
    )


def test_a_run_is_a_function_of_its_seed(scenes, tmp_path):
    prints = [
        train(configuration(scenes, tmp_path / name, seed=seed))["fingerprint"]
        for name, seed in (("one", 1), ("again", 1), ("two", 2))
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("changes", [{"workers": 1}, {"resident": "host"}, {"resident": "device"}])
def test_how_clips_are_read_changes_nothing(scenes, tmp_path, changes):
    data = DataConfig(path=str(scenes), split_fraction=0.5, **changes)
    train(configuration(scenes, tmp_path / "one"))
    train(configuration(scenes, tmp_path / "other", data=data))
    assert_same_run(tmp_path / "one", tmp_path / "other")


def ids(run):
    return [json.loads(line) for line in (run / "ids/rank-0.jsonl").read_text().splitlines()]


def test_an_epoch_has_every_clip_once_in_another_order(scenes, tmp_path):
    data = DataConfig(path=str(scenes), record_ids=True)
    settings = TrainConfig(epochs=2, batch_size=24)
    train(configuration(scenes, tmp_path / "run", data=data, train=settings))
    lines = ids(tmp_path / "run")
    assert [(line["epoch"], line["batch"]) for line in lines] == [
        (epoch, batch) for epoch in (0, 1) for batch in range(6)
    ]
    assert [len(line["ids"]) for line in lines] == [24, 24, 24, 24, 24, 8] * 2
    first, second = (
        [i for line in lines if line["epoch"] == e for i in line["ids"]] for e in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(128))
    assert first != second


def test_accumulation_trains_on_the_same_batches(scenes, tmp_path):
    data = DataConfig(path=str(scenes), split_fraction=0.5, record_ids=True)
    results = []
    for parts in (1, 2, 3):
        settings = TrainConfig(epochs=1, batch_size=16, accumulation=parts)
        run = tmp_path / str(parts)
        train(configuration(scenes, run, data=data, train=settings))
        results.append((ids(run), epochs_of(run)[0]))
    for lines, epoch in results[1:]:
        assert lines == results[0][0]
        assert epoch["step"] == results[0][1]["step"] == 4
        # Only the batch statistics differ: the first loss is ln 10 and the others are close.
        assert epoch["train_loss"] == pytest.approx(results[0][1]["train_loss"], rel=0.05)


@pytest.mark.parametrize("accumulation", [3, 16])
def test_more_micro_batches_than_clips(cli, scenes, tmp_path, accumulation):
    """The last of the 13 batches has 2 clips; with 16 parts most are empty."""
    data = DataConfig(path=str(scenes))
    settings = TrainConfig(epochs=1, batch_size=14, accumulation=accumulation)
    train(configuration(scenes, tmp_path / "run", data=data, train=settings))
    weights = tensors(tmp_path / "run/model/model.safetensors")
    assert [name for name, t in weights.items() if not torch.isfinite(t).all()] == []
    assert math.isfinite(epochs_of(tmp_path / "run")[0]["val_log_loss"])


def test_reduce_on_plateau_follows_the_validation_loss(cli, scenes, tmp_path, stop_at):
    optim = ["--optim.schedule", "reduce_on_plateau", "--optim.plateau_patience", 0]
    optim += ["--optim.plateau_factor", 0.5, "--optim.lr", 3e-2]
    settings = ["--model.widths", "[6, 8, 10]", "--data.path", scenes, "--data.split_fraction"]
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
    settings += ["--augment.mixstyle_p", 0, "--data.path", scenes, "--data.split_fraction", 0.25]
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
    weights = tensors(tmp_path / "bf16/model/model.safetensors")
    assert {t.dtype for name, t in weights.items() if "num_batches" not in name} == {torch.float32}


def test_bf16_after_pruning_is_still_bf16(cli, tiny, scenes, tmp_path):
    """Wrapped anew after the cut, the network must not fall back to float32 unseen."""
    command = ["prune", *tiny, "--data.path", scenes, "--data.split_fraction", 0.25]
    command += ["--prune.ratio", 0.5, "--train.epochs", 1]
    losses = []
    for precision in ("no", "bf16"):
        run = tmp_path / precision
        assert cli(*command, "--run", run, "--train.precision", precision).status == 0
        losses.append(epochs_of(run)[0]["train_loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_loss_that_is_not_finite_ends_the_run(cli, tiny, scenes, tmp_path):
    settings = [*tiny, "--data.path", scenes, "--data.split_fraction", 0.25, "--run", tmp_path]
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
    before = tensors(tiny_run / "model/model.safetensors")
    after = tensors(tmp_path / "model/model.safetensors")
    for name in before:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-9)


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
