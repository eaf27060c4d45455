"""Attributes that follow a cut, in a run: stopped after it, resumed, started from and shown."""

import json
import shutil

import pytest
from run_folder import assert_same_run, change_state

import cpprune
from cpprune.models.changes import changed_attributes

AFTER = {"attention.head_dim": 2, "attention.attn_dim": 6}


@pytest.fixture
def words(digits):
    return [
        *("--data.path", digits, "--features.preset", "image", "--data.train_fraction", 0.2),
        *("--train.batch_size", 10, "--train.checkpoint_steps", 1, "--train.keep_checkpoints", 9),
        *("--model.factory", "attentions:FixedHeads", "--prune.ratio", 0.5),
    ]


def test_a_run_goes_on_after_the_cut_and_the_next_cuts_more(cli, words, tmp_path):
    # 10 clips: a step, the cut, two steps.
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    first = [*words, "--train.epochs", 3, "--prune.start_epoch", 1, "--run"]
    assert cli("prune", *first, whole).status == 0
    assert changed_attributes(cpprune.load(whole / "model", trust=["attentions"]).network) == AFTER
    shutil.copytree(whole, stopped)
    latest = max((stopped / "checkpoints").iterdir())
    assert json.loads((latest / "state.json").read_text())["progress"]["attributes"] == AFTER
    shutil.rmtree(latest)
    (stopped / "result.json").unlink()
    assert "goes on" in cli("prune", *first, stopped).err
    assert_same_run(whole, stopped)

    (stopped / "result.json").unlink()
    for old in sorted((stopped / "checkpoints").iterdir())[:-1]:
        shutil.rmtree(old)
    change_state(stopped, lambda state: state["progress"]["attributes"].update({"stem.heads": 1}))
    refused = cli("prune", *first, stopped)
    assert refused.status == 2
    assert "progress.attributes: the network has no stem.heads that can become 1" in refused.err

    more = [*words, "--train.epochs", 1, "--init", whole / "model", "--run", tmp_path / "more"]
    assert cli("prune", *more).status == 0
    (state,) = (tmp_path / "more/checkpoints").glob("*/state.json")
    final = {"attention.head_dim": 1, "attention.attn_dim": 3}
    assert json.loads(state.read_text())["progress"]["attributes"] == final
    shown = cli("info", tmp_path / "more/model", "--trust", "attentions")
    assert "attributes: attention.attn_dim 3, attention.head_dim 1" in shown.out


def test_the_onnx_file_computes_the_same(cli, words, digits, tmp_path):
    assert cli("prune", *words, "--train.epochs", 1, "--run", tmp_path / "run").status == 0
    model, file = tmp_path / "run/model", tmp_path / "model.onnx"
    assert cli("export", model, "--out", file, "--trust", "attentions").status == 0
    one, other = (
        cli("evaluate", which, "--data", digits, "--json", "--trust", "attentions").json
        for which in (model, file)
    )
    assert other["log_loss"] == pytest.approx(one["log_loss"], rel=1e-4)
