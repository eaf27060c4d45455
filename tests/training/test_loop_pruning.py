"""Pruning as an event of a run: what is cut, when, and what the run keeps."""

import json
import math

import pytest
import torch
from marks import slow
from networks import parameters
from run_folder import epochs_of, events_of, weights_of

import cpprune

STEPS = {  # parameters of the big network after each event
    1: [44_784],
    3: [96_452, 69_388, 44_784],
    5: [109_054, 90_424, 74_684, 59_414, 44_784],
}


@pytest.mark.parametrize(
    ("criterion", "steps"),
    [
        ("magnitude", 3),
        slow("magnitude", 1),
        slow("bn_scale", 3),
        slow("group_norm", 3),
        slow("magnitude", 5),
        slow("bn_scale", 1),
        slow("group_norm", 1),
        slow("bn_scale", 5),
        slow("group_norm", 5),
    ],
)
def test_big_is_pruned_to_44784_parameters(cli, big_model, scenes, tmp_path, criterion, steps):
    run = tmp_path / "run"
    settings = ["--init", big_model, "--data.path", scenes, "--data.train_fraction", 0.12]
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
    assert parameters(model.network) == 44_784
    assert model.metadata["provenance"]["epoch"] == steps - 1
    widths = json.loads((run / "model/model.json").read_text())["widths"]
    assert set(widths.values()) == {18, 37, 75}
    start = cpprune.load(big_model)
    assert model.features.spec == start.features.spec


def test_pruning_keeps_the_weights_of_the_channels_that_stay(cli, tiny_run, scenes, tmp_path):
    settings = ["--init", tiny_run / "model", "--data.path", scenes, "--data.train_fraction", 0.1]
    settings += ["--train.batch_size", 16, "--train.epochs", 1, "--optim.lr", 1e-12]
    settings += ["--optim.weight_decay", 0, "--prune.ratio", 0.5, "--run", tmp_path / "run"]
    assert cli("prune", *settings).status == 0
    (plan_file,) = (tmp_path / "run/plans").iterdir()
    plan = json.loads(plan_file.read_text())
    first = next(group for group in plan["groups"] if group["layer"] == "stage1.block1.conv1")
    before = weights_of(tiny_run)["stage1.block1.conv1.weight"]
    after = weights_of(tmp_path / "run")["stage1.block1.conv1.weight"]
    inputs = next(group for group in plan["groups"] if "in_c.0" in group["layer"])["keep"]
    torch.testing.assert_close(after, before[first["keep"]][:, inputs], rtol=1e-4, atol=1e-6)
    # By hand: magnitude keeps the channels with the largest mean absolute weight of the group.
    assert first["keep"] == sorted(first["keep"])
    assert len(first["keep"]) == 3


@pytest.mark.parametrize("criterion", ["magnitude", "group_norm"])
def test_pruning_from_scratch(cli, scenes, tmp_path, criterion):
    run = tmp_path / "run"
    settings = ["--data.path", scenes, "--data.train_fraction", 0.12, "--train.batch_size", 16]
    settings += ["--train.epochs", 1, "--prune.ratio", 0.41, "--prune.criterion", criterion]
    result = cli("prune", *settings, "--run", run, "--json").json
    assert result["parameters"] == 44_784
    assert events_of(run)[0]["parameters_before"] == 131_316
    assert epochs_of(run)[0]["train_loss"] == pytest.approx(math.log(10), abs=0.2)


def test_a_criterion_that_cannot_score_an_untrained_network(cli, tiny, scenes, tmp_path):
    settings = [*tiny, "--data.path", scenes, "--data.train_fraction", 0.2, "--train.epochs", 1]
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
    settings += ["--data.train_fraction", 0.2, "--train.epochs", 2, "--prune.ratio", 0.5]
    assert cli("prune", *settings, "--prune.start_epoch", 1).status == 0
    model = cpprune.load(run / "model")
    assert "stage2.block1.shortcut.conv.weight" in model.network.state_dict()


def test_bf16_after_pruning_is_still_bf16(cli, tiny, scenes, tmp_path):
    """Wrapped anew after the cut, the network must not fall back to float32 unseen."""
    command = ["prune", *tiny, "--data.path", scenes, "--data.train_fraction", 0.25]
    command += ["--prune.ratio", 0.5, "--train.epochs", 1]
    losses = []
    for precision in ("no", "bf16"):
        run = tmp_path / precision
        assert cli(*command, "--run", run, "--train.precision", precision).status == 0
        losses.append(epochs_of(run)[0]["train_loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_ratios_of_layers_hold_through_the_steps_of_a_run(cli, scenes, tiny, tmp_path):
    """From scratch; in the file that resuming compares, too."""
    run = tmp_path / "run"
    settings = [*tiny, "--data.path", scenes, "--data.train_fraction", 0.12, "--run", run]
    settings += ["--train.batch_size", 16, "--train.epochs", 2, "--prune.steps", 2]
    settings += ["--prune.ratio", 0.5, "--model.widths", "[8, 8, 8]"]
    ratios = ["--prune.ratios", '{"stage1.*.conv1": 0.25, "stage3.*": 0}']
    assert cli("prune", *settings, *ratios).status == 0
    seen = [event["widths"] for event in events_of(run)]
    assert [widths["stage1.block1.conv1"] for widths in seen] == [7, 6]
    assert [widths["stage2.block1.conv1"] for widths in seen] == [6, 4]
    assert [widths["stage3.block1.conv1"] for widths in seen] == [8, 8]
    assert "is complete already" in cli("prune", *settings, *ratios).err
    other = cli("prune", *settings, "--prune.ratios", '{"stage3.*": 0}')
    assert other.status == 2
    assert "prune.ratios: {'stage1.*.conv1': 0.25, 'stage3.*': 0.0} then, " in other.err


def test_a_run_names_the_layers_that_a_second_criterion_scores(cli, scenes, tmp_path):
    settings = ["--model.factory", "networks:hidden", "--data.path", scenes, "--prune.ratio", 0.5]
    settings += ["--data.train_fraction", 0.12, "--train.batch_size", 16, "--train.epochs", 2]
    settings += ["--run", tmp_path / "run", "--prune.start_epoch", 1]
    settings += ["--prune.criterion", "bn_scale"]
    refused = cli("prune", *settings)
    assert refused.status == 2
    assert "finds nothing to score in" in refused.err
    assert not (tmp_path / "run").exists()
    outcome = cli("prune", *settings, "--prune.fallback_criterion", "magnitude")
    assert outcome.status == 0, outcome.err
    assert "scored by magnitude, since bn_scale finds nothing there: " in outcome.err
