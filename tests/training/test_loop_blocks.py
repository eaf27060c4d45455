"""Whole blocks, removed in a run: what is chosen and written, stopped runs, and models started from."""

import json
import shutil

import numpy as np
import pytest
import torch
from marks import slow
from networks import parameters
from run_folder import assert_same_run, change_state, events_of, metrics, tensors, weights_of

import cpprune
import shards
from cpprune.models.changes import removed_blocks
from cpprune.models.resize import layer_widths
from cpprune.pruning.blocks import influence, removable_blocks
from shards.order import permutation

# 32 clips in 4 batches, then 22 to validate: 5 reads an epoch. Blocks and channels go at epoch 1, more
# channels at epoch 2; quantised at epoch 3.
SETTINGS = [
    *("--data.train_fraction", 0.25, "--train.batch_size", 8, "--train.epochs", 4),
    *("--model.widths", "[6, 8, 10]", "--augment.mixstyle_p", 0.6, "--augment.mixup_alpha", 0.3),
    *("--optim.lr", 3e-3, "--optim.schedule", "cosine", "--optim.warmup_steps", 2),
    *("--prune.blocks", 2, "--prune.ratio", 0.4, "--prune.steps", 2, "--prune.start_epoch", 1),
    *("--prune.ignore", "[stage2.block2, stage1.block2.*]", "--prune.calibration_clips", 7),
    *("--prune.sparsity", "growing", "--train.ema_decay", 0.9, "--quantize.start_epoch", 3),
]
GONE = ["stage1.block1", "stage3.block2"]
SHORT = ["--train.epochs", 1, "--data.train_fraction", 0.12, "--train.batch_size", 16]


@pytest.fixture(scope="module")
def whole_run(call, scenes, tmp_path_factory):
    """The run that nobody stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call("prune", *SETTINGS, "--data.path", scenes, "--run", run) == 0
    return run


@pytest.fixture(scope="module")
def shallow(call, scenes, tiny_run, tmp_path_factory):
    """A run that removed a block of the tiny network, and no channel."""
    run = tmp_path_factory.mktemp("shallow") / "run"
    words = ["--init", tiny_run / "model", "--data.path", scenes, "--prune.blocks", 1]
    assert call("prune", *words, *SHORT, "--run", run) == 0
    return run


def test_blocks_go_at_the_first_step_and_channels_at_all(whole_run):
    first, second = events_of(whole_run)
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert sorted(first["removed_blocks"]) == GONE
    assert second["removed_blocks"] == []
    assert not any(name.startswith(tuple(GONE)) for name in first["widths"])
    # 40 % in two steps, of the widths of those that are left; stage 1 is ignored.
    assert first["widths"]["stage2.block1.conv1"] == 6
    assert second["widths"]["stage2.block1.conv1"] == 4
    assert second["widths"]["stage2.block2.conv1"] == 4  # only the block is to stay
    assert second["widths"]["stage1.block2.conv1"] == second["widths"]["in_c.0"] == 6
    plans = [json.loads(p.read_text()) for p in sorted((whole_run / "plans").iterdir())]
    assert [block["name"] for block in plans[0]["removed_blocks"]] == first["removed_blocks"]
    scores = [block["score"] for block in plans[0]["removed_blocks"]]
    assert scores == sorted(scores)
    assert plans[1]["removed_blocks"] == []
    model = cpprune.load(whole_run / "model")
    assert removed_blocks(model.network) == GONE
    content = json.loads((whole_run / "model/model.json").read_text())
    assert content["removed_blocks"] == GONE
    assert content["provenance"]["pruning"]["blocks"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stops", "checkpoint"),
    [
        slow([4], "step-00000003"),
        slow([7], "step-00000004"),  # after the first event, before the first step
        ([9, 6], "step-00000010"),  # after the first event, then after the second
        slow([20], "step-00000015"),  # when it is quantised
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(
    cli, whole_run, scenes, stop_at, tmp_path, stops, checkpoint
):
    run = tmp_path / "run"
    command = ["prune", *SETTINGS, "--data.path", scenes, "--run", run]
    command += ["--train.checkpoint_steps", 1]
    for number in stops:
        with stop_at(number):
            assert cli(*command).status == 130
    outcome = cli(*command)
    assert outcome.status == 0, outcome.err
    assert f"goes on from {checkpoint} " in outcome.err
    assert_same_run(run, whole_run)


def test_the_block_that_changes_its_input_least(shallow, tiny_run, scenes):
    """As measured here once more on the same clips; its scores are what the plan says."""
    model = cpprune.load(tiny_run / "model")
    train = shards.open_dataset(scenes).split("train")
    rows = np.sort(permutation(128, 0, 128)[:64])
    clips = torch.from_numpy(train.fetch(rows))
    names = removable_blocks(model.network, model.input_shape)
    scores = influence(model.network, names, model.features(clips))
    lowest = min(scores, key=lambda name: scores[name])
    (plan,) = (shallow / "plans").iterdir()
    found = json.loads(plan.read_text())
    assert found["removed_blocks"] == [{"name": lowest, "score": round(scores[lowest], 9)}]
    assert found["groups"] == []
    assert found["criterion"] is None
    (event,) = events_of(shallow)
    assert event["criterion"] is None
    assert event["parameters"] == parameters(cpprune.load(shallow / "model").network)
    assert event["parameters_before"] == parameters(model.network)


def test_the_weights_of_the_others_stay(cli, tiny_run, scenes, tmp_path):
    words = ["--init", tiny_run / "model", "--data.path", scenes, *SHORT, "--prune.blocks", 2]
    words += ["--optim.lr", 1e-12, "--optim.weight_decay", 0, "--run", tmp_path / "run"]
    outcome = cli("prune", *words)
    assert outcome.status == 0
    gone = events_of(tmp_path / "run")[0]["removed_blocks"]
    assert len(gone) == 2
    for name in gone:
        assert f"{name} is removed whole (block influence 0." in outcome.err
    assert "(1 of 1, blocks): " in outcome.err
    before, after = weights_of(tiny_run), weights_of(tmp_path / "run")
    assert before.keys() - after.keys() == {n for n in before if n.startswith(tuple(gone))}
    learned = [n for n in after if not n.endswith(("running_mean", "running_var", "tracked"))]
    for name in learned:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-6)
    state = tensors(max((tmp_path / "run/checkpoints").iterdir()) / "optimizer.safetensors")
    assert {key.rsplit("/", 1)[0] for key in state} == set(learned)


def test_a_model_without_blocks_loses_more(cli, shallow, scenes, tmp_path):
    """Channels and blocks; resumed once it is complete; with another head; averaged; exported."""
    gone = removed_blocks(cpprune.load(shallow / "model").network)
    words = ["--init", shallow / "model", "--data.path", scenes, *SHORT, "--run", tmp_path / "run"]
    words += ["--prune.blocks", 1, "--prune.ratio", 0.3]
    assert cli("prune", *words).status == 0
    again = removed_blocks(cpprune.load(tmp_path / "run/model").network)
    assert len(again) == 2
    assert set(gone) < set(again)
    (state,) = (tmp_path / "run/checkpoints").glob("*/state.json")
    assert sorted(json.loads(state.read_text())["progress"]["removed_blocks"]) == sorted(again)
    assert "is complete already" in cli("prune", *words).err
    refused = cli("soup", shallow / "model", tmp_path / "run/model", "--data", scenes, "--out", "o")
    assert refused.status == 2
    assert "has other blocks removed by pruning than" in refused.err
    soup = ["soup", shallow / "model", shallow / "model", "--data", scenes]
    assert cli(*soup, "--out", tmp_path / "soup").status == 0
    assert removed_blocks(cpprune.load(tmp_path / "soup").network) == gone


@pytest.mark.slow
def test_the_onnx_file_computes_the_same(cli, shallow, scenes, tmp_path):
    file = tmp_path / "model.onnx"
    assert cli("export", shallow / "model", "--out", file).status == 0
    one, other = (
        cli("evaluate", m, "--data", scenes, "--json").json for m in (shallow / "model", file)
    )
    assert other["log_loss"] == pytest.approx(one["log_loss"], rel=1e-4)


def test_a_dry_run_and_a_plan(cli, shallow, tiny_run, scenes, tmp_path):
    plan = tmp_path / "plan.json"
    words = ["prune", "--init", tiny_run / "model", "--data.path", scenes]
    dry = [*words, "--prune.blocks", 1, "--dry-run", "--prune.save_plan", plan]
    shown = cli(*dry, "--json").json
    (kept,) = (shallow / "plans").iterdir()
    assert json.loads(plan.read_text()) == json.loads(kept.read_text())
    assert shown["removed_blocks"] == json.loads(plan.read_text())["removed_blocks"]
    assert shown["after"]["parameters"] == events_of(shallow)[0]["parameters"]
    name = shown["removed_blocks"][0]["name"]
    assert f"\n{name} is removed whole (block influence 0." in cli(*dry).out
    run = tmp_path / "run"
    assert cli(*words, *SHORT, "--prune.plan", plan, "--run", run).status == 0
    assert events_of(run)[0]["removed_blocks"] == [name]
    assert weights_of(run).keys() == weights_of(shallow).keys()
    steps = [*words, "--prune.blocks", 1, "--prune.ratio", 0.5, "--prune.steps", 2, "--dry-run"]
    assert len(cli(*steps, "--json").json["removed_blocks"]) == 1


def test_a_criterion_that_needs_data_sees_what_is_left(cli, tiny_run, scenes, tmp_path):
    words = ["--init", tiny_run / "model", "--data.path", scenes, *SHORT, "--run", tmp_path / "run"]
    words += ["--prune.blocks", 1, "--prune.ratio", 0.3, "--prune.criterion", "taylor"]
    words += ["--prune.ratios", '{"stage1.block1.*": 0.5, "stage1.block2.*": 0.5}']
    assert cli("prune", *words).status == 0
    (event,) = events_of(tmp_path / "run")
    assert event["criterion"] == "taylor"
    assert len(event["removed_blocks"]) == 1


def test_what_cannot_work_is_refused_before_training(cli, tiny, tiny_run, scenes, tmp_path):
    run = tmp_path / "run"
    words = [*tiny, "--data.path", scenes, "--train.epochs", 2, "--run", run]
    outcome = cli("prune", *words, "--prune.blocks", 5, "--prune.start_epoch", 1)
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1].startswith(
        "cpprune: error: prune.blocks=5: 4 residual block(s) of this network can go: stage1.block1, "
        "stage1.block2, stage2.block2, stage3.block2; set prune.blocks to at most 4"
    )
    assert not run.exists() or not metrics(run)
    outcome = cli("prune", *tiny, "--prune.blocks", 1, "--dry-run")
    assert outcome.status == 2
    assert "prune.blocks=1 needs a trained network and its data: give --init MODEL" in outcome.err


def test_from_scratch(cli, tiny, scenes, tmp_path):
    """As it is initialised, every block passes what it gets: the first goes."""
    words = [*tiny, "--data.path", scenes, *SHORT, "--run", tmp_path / "run"]
    assert cli("prune", *words, "--prune.blocks", 1).status == 0
    (event,) = events_of(tmp_path / "run")
    assert event["removed_blocks"] == ["stage1.block2"]


def test_a_forged_checkpoint(cli, shallow, scenes, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(shallow, run)
    change_state(run, lambda state: state["progress"].update(removed_blocks=["stage9"]))
    words = ["--init", tiny_run / "model", "--data.path", scenes, "--prune.blocks", 1]
    outcome = cli("prune", *words, *SHORT, "--train.epochs", 2, "--run", run)
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert (
        "state.json: is damaged or does not fit (progress.removed_blocks: the network has no"
        in last
    )


def test_reports_and_info_say_which_blocks_went(cli, shallow, tiny_run, scenes, tmp_path):
    (event,) = events_of(shallow)
    (name,) = event["removed_blocks"]
    assert cli("info", shallow / "model", "--json").json["removed_blocks"] == [name]
    assert f"\nremoved blocks: {name}\n" in cli("info", shallow / "model").out
    assert "removed_blocks" not in cli("info", tiny_run / "model", "--json").json
    out = tmp_path / "page.html"
    assert cli("report", shallow, "--out", out).status == 0
    text = out.read_text()
    assert f"at the start of epoch 1 (without {name})." in text
    width = layer_widths(cpprune.load(tiny_run / "model").network)[f"{name}.conv1"]
    assert f"{name}.conv1: {width} before, 0 from epoch 1 on" in text
    assert "Layers before and after pruning" in text
    # From a model that lacked the block already, its layers are none of the run.
    run = tmp_path / "run"
    words = ["--init", shallow / "model", "--data.path", scenes, *SHORT, "--run", run]
    assert cli("prune", *words, "--prune.ratio", 0.3).status == 0
    text = (run / "report.html").read_text()
    assert f"{name}.conv1" not in text
    assert "Layers, excluding normalisation" in text
