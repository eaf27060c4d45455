"""Runs that start from weights: with a new head for other classes, or from a file of one's own."""

import json
import sys

import pytest
import safetensors.torch
import torch
from run_folder import assert_same_run, tensors, weights_of

import cpprune

SHORT = ["--data.train_fraction", 0.25, "--train.batch_size", 16, "--train.epochs", 2]
SHORT += ["--optim.schedule", "constant", "--augment.mixstyle_p", 0]


@pytest.fixture(scope="module")
def hums(call, noise_folder, tmp_path_factory):
    """A dataset of two classes that are no scenes."""
    folder = tmp_path_factory.mktemp("hums")
    source = noise_folder(folder / "audio", ("hum", "hiss"), 12)
    words = ["--source", source, "--out", folder / "dataset", "--workers", 1]
    assert call("shards", "build", "folder", *words) == 0
    return folder / "dataset"


def test_a_model_is_trained_on_with_a_new_head(cli, refused, tiny_run, hums, tmp_path, stop_at):
    command = ["train", *SHORT, "--data.train_fraction", 1, "--init", tiny_run / "model"]
    command += ["--data.path", hums, "--optim.lr", 1e-2, "--optim.weight_decay", 0]
    refused(*command, "--run", tmp_path / "no", names=["other classes", "init_head=new"])
    new = [*command, "--init_head", "new", "--optim.kept_lr_factor", 0]
    new += ["--train.checkpoint_steps", 1]
    outcome = cli(*new, "--run", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    loaded = cpprune.load(tmp_path / "run/model")
    assert loaded.classes == ("hiss", "hum")
    old, own = weights_of(tiny_run), weights_of(tmp_path / "run", "model_last")
    assert own["feed_forward.0.weight"].shape == (2, 10, 1, 1)
    assert own["feed_forward.0.weight"].abs().max() > 0, "it begins at zero"
    trained = [name for name in old if name.endswith(("weight", "bias"))]
    body = [name for name in trained if not name.startswith("feed_forward")]
    assert all(torch.equal(own[name], old[name]) for name in body)

    with stop_at(3):
        assert cli(*new, "--run", tmp_path / "stopped").status == 130
    assert cli(*new, "--run", tmp_path / "stopped").status == 0
    for name in ("network", "optimizer"):
        last = max((tmp_path / "run/checkpoints").iterdir()).name
        one, other = (
            tensors(tmp_path / run / "checkpoints" / last / f"{name}.safetensors")
            for run in ("run", "stopped")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_kept_has_its_own_learning_rate(cli, tiny_run, hums, tmp_path):
    """A first step of Adam is the learning rate, whatever the gradient.

    The new head is zero, so the body has no gradient before the second, which is then 0.744 of it.
    """
    command = ["train", *SHORT, "--data.train_fraction", 1, "--init", tiny_run / "model"]
    command += ["--data.path", hums, "--optim.lr", 1e-2, "--optim.weight_decay", 0]
    command += ["--init_head", "new", "--optim.kept_lr_factor", 0.1, "--train.checkpoint_steps", 1]
    command += ["--train.keep_checkpoints", 20, "--run", tmp_path / "run"]
    assert cli(*command).status == 0
    before = weights_of(tiny_run)["in_c.0.weight"]
    one, two = (
        tensors(tmp_path / f"run/checkpoints/step-{step:08d}/network.safetensors")
        for step in (1, 2)
    )
    assert one["feed_forward.1.bias"].abs().max().item() == pytest.approx(1e-2, rel=1e-2)
    assert torch.equal(one["in_c.0.weight"], before)
    moved = (two["in_c.0.weight"] - before).abs()
    second = (0.1 / (1 - 0.9**2)) / (0.001 / (1 - 0.999**2)) ** 0.5
    assert moved.median().item() == pytest.approx(1e-3 * second, rel=2e-2)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["--init_head", "new"], ["init_head=new", "no init"]),
        (["--optim.kept_lr_factor", 0.1], ["optim.kept_lr_factor=0.1", "init_head=new"]),
        (["--optim.kept_lr_factor", 2], ["optim.kept_lr_factor=2", "from 0 to 1"]),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_together(refused, scenes, tmp_path, settings, names):
    refused("train", *settings, "--data.path", scenes, "--run", tmp_path / "run", names=names)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A network of the user's own and its trained weights."""
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\n\n"
        "def make(num_classes: int) -> nn.Module:\n"
        "    body = [nn.Conv2d(1, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]\n"
        "    return nn.Sequential(*body, nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import own_net

    torch.manual_seed(7)
    yield own_net.make(10)
    sys.modules.pop("own_net", None)


def test_a_run_starts_from_weights_of_ones_own(cli, refused, scenes, own, tmp_path):
    state = own.state_dict()
    torch.save({"state_dict": {f"model.{k}": t for k, t in state.items()}}, "own.pth")
    safetensors.torch.save_file(state, "own.safetensors")
    command = ["train", *SHORT, "--data.path", scenes, "--model.factory", "own_net:make"]
    command += ["--optim.lr", 1e-12]
    for file in ("own.pth", "own.safetensors"):
        outcome = cli(*command, "--init", file, "--run", f"from-{file}")
        assert outcome.status == 0, outcome.err
    assert_same = weights_of(tmp_path / "from-own.pth", "model_last")
    for name, tensor in assert_same.items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-9)
    description = json.loads((tmp_path / "from-own.pth/model/model.json").read_text())
    assert len(description["provenance"]["init"]) == 64
    # The same weights in another file are another run, since their bytes are compared.
    refused(
        *(*command, "--init", "own.safetensors", "--run", "from-own.pth"),
        names=["init: another model"],
    )
    state["0.weight"] = torch.zeros(4, 1, 3, 3)
    torch.save(state, "own.pth")
    refused(
        *(*command, "--init", "own.pth", "--run", "wrong"),
        names=["own.pth: 0.weight has shape [4, 1, 3, 3], but [4, 1, 5, 5]"],
    )
    refused(*command, "--init", "none.pth", "--run", "wrong", names=["none.pth"])
    assert not (tmp_path / "wrong").exists()


def test_weights_of_ones_own_get_a_new_head(cli, scenes, own, tmp_path):
    state = own.state_dict() | {"5.weight": torch.zeros(3, 4), "5.bias": torch.zeros(3)}
    torch.save(state, "three.pth")
    command = ["train", *SHORT, "--data.path", scenes, "--model.factory", "own_net:make"]
    command += ["--init", "three.pth", "--init_head", "new", "--optim.kept_lr_factor", 0]
    outcome = cli(*command, "--run", "run")
    assert outcome.status == 0, outcome.err
    weights = weights_of(tmp_path / "run")
    assert torch.equal(weights["0.weight"], state["0.weight"])
    assert weights["5.weight"].shape == (10, 4)


def test_two_files_of_the_same_weights_give_the_same_run(cli, scenes, own, tmp_path):
    torch.save(own.state_dict(), "own.pth")
    command = ["train", *SHORT, "--data.path", scenes, "--model.factory", "own_net:make"]
    command += ["--train.ema_decay", 0.5]
    for run in ("one", "two"):
        assert cli(*command, "--init", "own.pth", "--run", run).status == 0
    assert_same_run(tmp_path / "one", tmp_path / "two")
