"""Networks of any kind: trained exactly and pruned, or refused before the first step."""

import json

import pytest
import torch
import zoo
from marks import slow
from networks import plan_for
from run_folder import assert_same_run, weights_of

import cpprune
from cpprune.models.resize import fit
from cpprune.pruning.preview import preview
from cpprune.pruning.surgery import apply_plan

SHAPE = (1, 28, 28)
CUT = ["--prune.ratio", 0.5, "--prune.start_epoch", 1]
UNPRUNABLE = {"Tied": "shares weights", "Normed": "has a parametrised weight"}


@pytest.fixture
def settings(digits):
    def of(name, *more):
        words = ["--data.path", digits, "--features.preset", "image", "--train.batch_size", 9]
        words += ["--train.epochs", 2, "--optim.schedule", "constant", "--trust", "zoo"]
        return [*words, "--model.factory", f"zoo:{name}", *more]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.TRAINED)
def test_it_is_trained_pruned_and_comes_back(cli, settings, digits, tmp_path, name):
    cut = [] if name in UNPRUNABLE else CUT
    run = tmp_path / "run"
    outcome = cli("prune" if cut else "train", *settings(name, *cut, "--run", run))
    assert outcome.status == 0, outcome.err
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < record["train_loss"] < 10
    report = cli(
        *("evaluate", run / "model_last", "--data", digits, "--split", "val", "--json"),
        *("--trust", "zoo"),
    ).json
    assert report["log_loss"] == pytest.approx(record["val_log_loss"], abs=1e-6)


@pytest.mark.parametrize("name", [name for name in zoo.TRAINED if name not in UNPRUNABLE])
def test_every_layer_is_cut_or_has_a_reason(name):
    torch.manual_seed(0)
    network = cpprune.build_model(f"zoo:{name}").eval()
    network(torch.zeros(2, *SHAPE))
    plan = plan_for(network, SHAPE, ratio=0.5)
    shown = preview(network, SHAPE, [plan])
    unchanged = {layer["name"] for layer in shown["layers"] if layer["before"] == layer["after"]}
    assert unchanged == shown["left_alone"].keys()
    assert all(shown["left_alone"].values())


@pytest.mark.parametrize(("name", "criterion"), [("CRNN", "taylor"), ("ConvLSTM", "magnitude")])
def test_recurrent_networks_at_half_of_their_parameters(cli, settings, tmp_path, name, criterion):
    whole = sum(p.numel() for p in cpprune.build_model(f"zoo:{name}").parameters())
    run = tmp_path / "run"
    words = ["--prune.budget", f"params<={whole // 2}", "--prune.criterion", criterion]
    outcome = cli("prune", *settings(name, *words, "--run", run))
    assert outcome.status == 0, outcome.err
    one, two = (cpprune.load(run / "model_last", trust=["zoo"]).network.eval() for _ in range(2))
    assert 0.4 * whole < sum(p.numel() for p in one.parameters()) <= whole // 2
    assert one.rnn.hidden_size < 10
    stored = cpprune.build_model(f"zoo:{name}").eval()
    fit(stored, one.state_dict())
    stored.load_state_dict(two.state_dict())
    x = torch.randn(2, *SHAPE)
    assert torch.equal(one(x), stored(x))


@pytest.mark.parametrize("name", ["SpatialGate", "AttentionPooling"])
@pytest.mark.parametrize("criterion", ["magnitude", "fpgm", "group_norm", "lamp"])
def test_a_gate_of_one_channel_does_not_keep_others(name, criterion):
    network = cpprune.build_model(f"zoo:{name}")
    apply_plan(network, SHAPE, plan_for(network, SHAPE, ratio=0.5, criterion=criterion))
    assert network.conv.out_channels == 6
    assert network(torch.zeros(2, *SHAPE)).shape == (2, 10)


@pytest.mark.parametrize(("name", "reason"), UNPRUNABLE.items())
def test_what_cannot_be_cut_is_refused_before_training(refused, settings, tmp_path, name, reason):
    run = tmp_path / "run"
    refused("prune", *settings(name, *CUT, "--run", run), names=[reason])
    assert not (run / "metrics.jsonl").exists()


def test_a_cut_that_breaks_training_is_refused_before_it(cli, refused, settings, tmp_path):
    run = tmp_path / "run"
    words = ["prune", *settings(zoo.UNCUT, *CUT, "--run", run), "--prune.ratios", '{"conv": 0.25}']
    refused(*words, names=["fails in training", "prune.ignore"])
    assert not (run / "metrics.jsonl").exists()
    assert cli("train", *settings(zoo.UNCUT, "--run", run)).status == 0


@pytest.mark.parametrize(("name", "reason"), zoo.REFUSED.items())
def test_what_cannot_be_trained_is_refused(refused, settings, tmp_path, name, reason):
    refused("train", *settings(name, "--run", tmp_path / "run"), names=[reason])


def test_a_batch_of_one_clip_that_cannot_be_normalised(refused, cli, settings, tmp_path):
    words = settings("OneRow", "--train.batch_size", 7, "--run", tmp_path / "run")  # 50 = 7 · 7 + 1
    refused("train", *words, names=["1 clip", "train.drop_last=true"])
    assert cli("train", *words, "--train.drop_last", "true").status == 0


def test_drop_last_leaves_whole_batches(cli, refused, settings, tmp_path):
    words = settings("Plain", "--data.record_ids", "true", "--train.drop_last", "true", "--run")
    assert cli("train", *words, tmp_path / "run").status == 0
    lines = [json.loads(x) for x in (tmp_path / "run/ids/rank-0.jsonl").read_text().splitlines()]
    assert [len(line["ids"]) for line in lines] == [9] * 10
    few = [*words, tmp_path / "none", "--train.batch_size", 51]
    refused("train", *few, names=["train.drop_last=true", "50 clips"])


@pytest.mark.parametrize(
    ("settings_of_pruning", "names"),
    [
        (["--prune.budget", "params<=10"], ["params<=10", "cannot be met"]),
        (["--prune.ratio", 0.5, "--prune.criterion", "bn_scale"], ["conv", "bn_scale"]),
        (["--prune.ratio", 0.5, "--prune.sparsity", "slimming"], ["slimming", "group_norm"]),
    ],
    ids=["budget", "criterion", "regularizer"],
)
def test_what_pruning_cannot_do_is_refused_before_training(
    refused, settings, tmp_path, settings_of_pruning, names
):
    run = tmp_path / "run"
    words = settings("Unnormalised", "--prune.start_epoch", 1, *settings_of_pruning, "--run", run)
    refused("prune", *words, names=names)
    assert not (run / "metrics.jsonl").exists()


def test_pruning_that_has_not_begun_may_be_changed(cli, refused, settings, stop_at, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = settings("Plain", "--train.epochs", 3, "--train.checkpoint_steps", 1, "--run")
    late, early = ["--prune.start_epoch", 2], ["--prune.start_epoch", 1]
    with stop_at(9):  # in the second epoch
        assert cli("prune", *words, run, *late, "--prune.ratio", 0.2).status == 130
    refused(
        "prune", *words, run, *early, "--prune.ratio", 0.2, names=["start_epoch: 2 then, 1 now"]
    )
    outcome = cli("prune", *words, run, *late, "--prune.ratio", 0.5)
    assert "prune.ratio: 0.2 then, 0.5 now: pruning has not begun" in outcome.err
    assert cli("prune", *words, whole, *late, "--prune.ratio", 0.5).status == 0
    assert_same_run(run, whole)


# --- random layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Dropout", slow("StochasticDepth")])
def test_random_layers_follow_from_the_seed(cli, settings, stop_at, tmp_path, name):
    start = tmp_path / "start"
    assert cli("train", *settings(name, "--train.epochs", 1, "--run", start)).status == 0
    words = settings(name)
    del words[words.index("--model.factory") : words.index("--model.factory") + 2]
    words += ["--init", start / "model", "--train.checkpoint_steps", 1, "--run"]
    assert cli("train", *words, tmp_path / "one").status == 0
    torch.rand(3)  # whatever the process has drawn before
    assert cli("train", *words, tmp_path / "two").status == 0
    assert_same_run(tmp_path / "one", tmp_path / "two")
    with stop_at(9):
        assert cli("train", *words, tmp_path / "three").status == 130
    assert cli("train", *words, tmp_path / "three").status == 0
    assert_same_run(tmp_path / "one", tmp_path / "three")
    assert cli("train", *words, tmp_path / "four", "--seed", 8).status == 0
    one, four = weights_of(tmp_path / "one"), weights_of(tmp_path / "four")
    assert not torch.equal(one["conv.weight"], four["conv.weight"])
