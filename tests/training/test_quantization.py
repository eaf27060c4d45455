"""Quantisation-aware training: an event of the loop, resumed to the bit and exported without loss."""

import json

import pytest
import torch
from marks import slow
from run_folder import assert_same_run, epochs_of, metrics, tensors

from cpprune.models import artifact
from cpprune.models.quantized import RANGES, is_quantized

# 32 clips in 4 batches, then 22 to validate: 5 reads an epoch. Pruned at epoch 1, quantised at epoch 2.
SETTINGS = [
    *("--data.train_fraction", 0.25, "--train.batch_size", 8, "--train.epochs", 4),
    *("--model.widths", "[6, 8, 10]", "--augment.mixstyle_p", 0.6, "--augment.mixup_alpha", 0.3),
    *("--optim.lr", 3e-3, "--optim.schedule", "cosine", "--optim.warmup_steps", 2),
    *("--prune.ratio", 0.4, "--prune.start_epoch", 1, "--quantize.start_epoch", 2),
    *("--train.ema_decay", 0.9, "--train.micro_batch_size", 3),
]


@pytest.fixture(scope="module")
def whole_run(call, scenes, tmp_path_factory):
    """The run that nobody stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call("prune", *SETTINGS, "--data.path", scenes, "--run", run) == 0
    return run


def test_it_is_an_event_of_the_loop(whole_run):
    cut, quantized = (record for record in metrics(whole_run) if "event" in record)
    assert (cut["event"], cut["epoch"]) == ("prune", 1)
    assert quantized["event"] == "quantize"
    assert (quantized["epoch"], quantized["step"], quantized["layers"]) == (2, 8, 15)
    best = [epoch["best"] for epoch in epochs_of(whole_run)]
    assert best[:3] == [False, False, True]  # only quantised models count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stops", "every", "checkpoint"),
    [
        slow([11], 1, "step-00000008"),  # between the event and the first step after it
        ([14], 1, "step-00000011"),
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
    assert f"goes on from {checkpoint} " in outcome.err
    assert_same_run(run, whole_run)


def test_the_model_folder_holds_ranges_and_computes_as_it_was_validated(cli, whole_run, scenes):
    content = json.loads((whole_run / "model" / "model.json").read_text())
    assert content["quantization"] == {"bits": 8, "keep_float": ["first"]}
    ranges = tensors(whole_run / "model" / "model.safetensors")[RANGES]
    assert (ranges[:, 0] <= 0).all()
    assert (ranges[:, 1] > 0).all()
    model = artifact.load(whole_run / "model")
    assert is_quantized(model.network)
    assert torch.equal(model.network.fake_quantize.ranges, ranges)
    found = cli("evaluate", whole_run / "model", "--data", scenes, "--split", "val", "--json").json
    best = [epoch for epoch in epochs_of(whole_run) if epoch["best"]][-1]
    assert found["log_loss"] == pytest.approx(best["val_log_loss"], rel=1e-5)
    info = cli("info", whole_run / "model").out
    assert "quantised (int8) in training: 15 layers" in info


def test_batch_normalisation_keeps_its_statistics(whole_run):
    steps = tensors(whole_run / "checkpoints" / "step-00000016" / "network.safetensors")
    counted = {int(t) for name, t in steps.items() if name.endswith("num_batches_tracked")}
    assert counted == {24}  # three micro-batches in each of the first 8 steps


@pytest.mark.slow
def test_export_needs_no_data_and_gives_the_same_classes(cli, whole_run, scenes, tmp_path):
    out = tmp_path / "model.onnx"
    assert cli("export", whole_run / "model", "--precision", "int8", "--out", out).status == 0
    words = ["--check", "--data", scenes, "--split", "train", "--json", "--force"]
    done = cli("export", whole_run / "model", "--precision", "int8", "--out", out, *words).json
    assert done["check"]["agreement"] >= 0.999
    assert done["bytes"]["network"] < 4 * done["parameters"]  # with scales, and the first in float


def test_other_precisions_and_options_are_refused(refused, whole_run, tmp_path):
    out = ["--out", tmp_path / "model.onnx"]
    refused("export", whole_run / "model", *out, names=["--precision fp32", "--precision int8"])
    words = ["--precision", "int8", "--keep-float", "none"]
    refused("export", whole_run / "model", *out, *words, names=["--keep-float: "])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--quantize.bits", 4, "--quantize.start_epoch", 1], ["quantize.bits=4", "8"]),
        (["--quantize.start_epoch", 0], ["quantize.start_epoch=0", "init"]),
        (["--quantize.start_epoch", -1], ["quantize.start_epoch=-1"]),
        (["--quantize.start_epoch", 4], ["quantize.start_epoch=4", "train.epochs"]),
        (
            ["--quantize.start_epoch", 2, "--prune.ratio", 0.4, "--prune.start_epoch", 2],
            ["quantize.start_epoch=2", "epoch 2", "prune"],
        ),
        (
            ["--quantize.start_epoch", 1, "--train.compile", "graph"],
            ["quantize.start_epoch=1", "train.compile=auto"],
        ),
        (
            ["--quantize.start_epoch", 1, "--quantize.keep_float", "[stage1.block1.conv]"],
            ["quantize.keep_float=stage1.block1.conv:", "did you mean stage1.block1.conv2?"],
        ),
        (
            ["--quantize.start_epoch", 1, "--model.name", "rep_cp_mobile"],
            ["rep_cp_mobile", "fused"],
        ),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(refused, scenes, tmp_path, words, names):
    run = tmp_path / "run"
    command = "prune" if "--prune.ratio" in words else "train"
    own = [] if "--model.name" in words else ["--model.widths", "[6, 8, 10]"]
    line = [command, *own, "--train.epochs", 4, "--data.path", scenes, "--run", run, *words]
    refused(*line, names=names)
    assert not (run / "metrics.jsonl").exists()


@pytest.mark.slow
def test_training_from_a_quantised_model_begins_with_its_float_network(
    cli, whole_run, scenes, tmp_path
):
    words = ["--init", whole_run / "model", "--data.path", scenes, "--run", tmp_path / "run"]
    words += ["--train.epochs", 1, "--train.batch_size", 64]
    plain = cli("train", *words)
    assert plain.status == 0
    assert "is quantised; what is trained is its network in float32" in plain.err
    assert not is_quantized(artifact.load(tmp_path / "run" / "model").network)
    again = cli("train", *words, "--quantize.start_epoch", 0, "--resume", "never")
    assert again.status == 0
    assert is_quantized(artifact.load(tmp_path / "run" / "model").network)
    assert len(metrics(tmp_path / "run")) == 2
