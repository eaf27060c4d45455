"""What a run does between its cuts: averages, penalties, learning rates, ramps."""

import json
import math

import pytest
import torch
from run_folder import epochs_of, events_of, metrics, tensors, weights_of

import cpprune

# Four epochs of four steps; cuts at the beginning of the second and the third.
SETTINGS = ["--data.train_fraction", 0.25, "--train.batch_size", 8, "--train.epochs", 4]
SETTINGS += ["--optim.lr", 3e-3, "--optim.weight_decay", 0, "--optim.schedule", "constant"]
SETTINGS += ["--prune.ratio", 0.5, "--prune.steps", 2, "--prune.start_epoch", 1]
MANY = ["--train.keep_checkpoints", 20]


@pytest.fixture
def run(call, tiny_run, scenes, tmp_path):
    """Runs `cpprune prune` with more settings; returns the run's folder."""

    def go(*more):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        begin = ["--init", tiny_run / "model", "--data.path", scenes, "--run", folder]
        assert call("prune", *SETTINGS, *begin, *more) == 0
        return folder

    return go


def last(folder, name):
    return tensors(max((folder / "checkpoints").iterdir()) / f"{name}.safetensors")


@pytest.mark.slow
def test_the_average_is_what_is_saved_and_it_is_cut_along(run):
    folder = run("--train.ema_decay", 0.9, "--train.checkpoint_steps", 1)
    network, average = last(folder, "network"), last(folder, "average")
    model = weights_of(folder, "model_last")
    assert all(torch.equal(model[name], average[name]) for name in model)
    assert {n: t.shape for n, t in network.items()} == {n: t.shape for n, t in average.items()}
    assert any(not torch.equal(network[name], average[name]) for name in network)
    # The average of the epochs' accuracies is that of the averaged network.
    loaded = cpprune.load(folder / "model_last")
    assert loaded.metadata["metrics"]["val"]["log_loss"] == epochs_of(folder)[-1]["val_log_loss"]


@pytest.mark.slow
def test_the_average_keeps_what_it_knew_of_the_channels_that_stay(run):
    """One step after a cut, the average is still nine tenths of what it was before."""
    folder = run("--train.ema_decay", 0.9, "--train.checkpoint_steps", 1, *MANY)
    before, after = at(folder, 4, "average"), at(folder, 5, "average")
    network = at(folder, 5, "network")
    plan = json.loads((folder / "plans/epoch-0001.json").read_text())
    keep = next(g["keep"] for g in plan["groups"] if g["layer"] == "stage2.block1.conv1")
    name = "stage2.block1.bn1.weight"
    decay = (1 + 4) / (10 + 4)  # the average is young
    expected = decay * before[name][keep] + (1 - decay) * network[name]
    torch.testing.assert_close(after[name], expected)


def at(folder, step, name):
    return tensors(folder / f"checkpoints/step-{step:08d}" / f"{name}.safetensors")


@pytest.mark.slow
def test_slimming_pulls_the_scales_down_until_the_last_cut(run):
    more = ["--train.checkpoint_steps", 1, *MANY, "--optim.name", "sgd", "--optim.lr", 1e-3]
    plain = run(*more)
    slim = run(*more, "--prune.sparsity", "slimming", "--prune.sparsity_strength", 0.5)
    name = "stage2.block1.bn1.weight"
    start = at(plain, 1, "network")[name] - at(slim, 1, "network")[name]
    # The first step of SGD: lr · s · sign(γ) less, and nothing else is different.
    sign = at(plain, 1, "network")[name].sign()
    torch.testing.assert_close(start, 1e-3 * 0.5 * sign, rtol=1e-3, atol=1e-7)
    other = "feed_forward.1.weight"
    torch.testing.assert_close(at(plain, 1, "network")[other], at(slim, 1, "network")[other])
    losses = [line["train_loss"] for line in epochs_of(slim)]
    assert losses[0] == pytest.approx(epochs_of(plain)[0]["train_loss"], abs=0.05), (
        "the loss that is shown is the cross-entropy alone"
    )


@pytest.mark.slow
def test_the_learning_rate_begins_anew_with_every_cut(run):
    cosine = ["--optim.schedule", "cosine", "--optim.warmup_epochs", 0, "--optim.last_factor", 0.1]
    rates = [line["lr"] for line in epochs_of(run(*cosine))]
    expected = [3e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * e / 3)) / 2) for e in range(4)]
    assert rates == pytest.approx(expected)
    anew = run(*cosine, "--prune.learning_rate", "rewind")
    # Spans of one epoch, one epoch and two.
    assert [line["lr"] for line in epochs_of(anew)] == pytest.approx([3e-3, 3e-3, 3e-3, 3e-4])


def test_a_schedule_by_step_moves_every_step_and_begins_anew_with_every_cut(run):
    """A step of SGD is the learning rate times its momentum, which the checkpoint holds."""
    more = ["--optim.schedule", "cosine", "--optim.warmup_steps", 2, "--optim.last_factor", 0]
    more += [
        "--prune.learning_rate",
        "rewind",
        "--optim.name",
        "sgd",
        "--train.checkpoint_steps",
        1,
    ]
    folder = run(*more, *MANY)
    name = "stage3.block2.conv1.weight"
    # Two steps of linear warm-up and half a cosine over the other two of the four steps.
    for step, factor in ((2, 1 / 2), (3, 1), (4, 1 / 2), (6, 1 / 2), (7, 1), (8, 1 / 2)):
        moved = at(folder, step - 1, "network")[name] - at(folder, step, "network")[name]
        momentum = at(folder, step, "optimizer")[f"{name}/momentum_buffer"]
        torch.testing.assert_close(moved, 3e-3 * factor * momentum, rtol=1e-3, atol=1e-7)
    # The line of an epoch has the rate of its last step; the last two epochs are one span.
    last = 3e-3 * (1 + math.cos(math.pi * 5 / 6)) / 2
    rates = [line["lr"] for line in epochs_of(folder)]
    assert rates == pytest.approx([1.5e-3, 1.5e-3, 3e-3 * (1 + math.cos(math.pi / 6)) / 2, last])


@pytest.mark.slow
def test_a_ramp_of_the_parameter_count(run):
    folder = run("--prune.ramp", "linear", "--prune.ratio", 0.3, "--prune.steps", 3)
    counts = [event["parameters"] for event in events_of(folder)]
    start, end = events_of(folder)[0]["parameters_before"], counts[-1]
    for step, count in enumerate(counts, start=1):
        curve = start + (end - start) * step / 3
        assert 0.8 * curve < count <= curve  # a channel of this network is a lot
    assert metrics(folder)[-1]["parameters"] == end


@pytest.mark.slow
def test_state_dropped_is_state_gone(run):
    folder = run("--train.checkpoint_steps", 1, *MANY, "--prune.carry_state", "false")
    assert at(folder, 5, "optimizer")["in_c.0.weight/step"] == 1
    carried = run("--train.checkpoint_steps", 1, *MANY)
    assert at(carried, 5, "optimizer")["in_c.0.weight/step"] == 5
