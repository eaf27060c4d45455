"""Every network family on the whole road: trained, cut, exported, and the same in onnxruntime."""

import json

import pytest
from marks import slow

from cpprune.models import networks

# No layer of it can lose channels; or it is pruned once it is fused.
NOT_PRUNED = {"tf_sepnet", "rep_cp_mobile"}
SMALL = {
    "bc_resnet": ["--model.arguments", '{"scale": 0.5}'],
    "cnn_gru": ["--model.arguments", '{"width": 8, "middle": 6, "last": 5}'],
    "cp_mobile": ["--model.base_channels", 8],
    "rep_cp_mobile": ["--model.base_channels", 8],
    "cp_resnet": ["--model.widths", "[6, 8, 10]"],
    "tf_sepnet": ["--model.arguments", '{"width": 8}'],
}


@pytest.mark.parametrize("name", [slow(name) for name in networks.NAMES])
def test_a_family_is_trained_cut_and_exported(cli, scenes, tmp_path, name):
    command = "train" if name in NOT_PRUNED else "prune"
    settings = ["--model.name", name, *SMALL.get(name, [])]
    settings += ["--data.path", scenes, "--data.train_fraction", 0.25, "--train.batch_size", 16]
    settings += ["--train.epochs", 2, "--optim.schedule", "constant", "--run", tmp_path / "run"]
    if command == "prune":
        settings += ["--prune.ratio", 0.5, "--prune.start_epoch", 1]
    outcome = cli(command, *settings)
    assert outcome.status == 0, outcome.err
    lines = [json.loads(t) for t in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for event in lines:
        if event.get("event") == "prune":
            assert event["parameters"] < event["parameters_before"]
    assert cli("evaluate", tmp_path / "run/model", "--data", scenes).status == 0
    exported = cli("export", tmp_path / "run/model", "--out", tmp_path / "model.onnx", "--json")
    assert exported.status == 0, exported.err
    assert (tmp_path / "model.onnx").stat().st_size > 1000
