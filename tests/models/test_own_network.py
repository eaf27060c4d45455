"""A network of the user's own on the command line: trained, pruned, stopped, resumed, evaluated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import cpprune
from cpprune.cli.main import main

SOURCE = """
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 5, stride=4), nn.BatchNorm2d(width), nn.GELU())
        self.depthwise = nn.Conv2d(width, width, 3, stride=2, groups=width)
        self.wide = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.ReLU())
        self.out = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.out(self.wide(self.depthwise(self.stem(x))).mean((2, 3)))


def tiny(num_classes: int, width: int = 8) -> nn.Module:
    return Tiny(num_classes, width)


def too_many(num_classes: int) -> nn.Module:
    return Tiny(num_classes + 1)


def unannotated(num_classes):
    raise SystemExit("called")
"""

# 32 clips in 4 batches; an event at the start of the second epoch.
TRAIN = ["--data.train_fraction", 0.25, "--train.batch_size", 8, "--optim.schedule", "constant"]


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The current folder, with own_nets.py in it, which is not on the import path."""
    (tmp_path / "own_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_nets", None)


def widths(run: Path) -> dict[str, int]:
    return json.loads((run / "model/model.json").read_text())["widths"]


def test_it_is_trained_pruned_and_evaluated(cli, scenes, nets):
    model = ["--model.factory", "own_nets:tiny", "--model.arguments", '{"width": 10}']
    settings = [*TRAIN, "--data.path", scenes, "--train.epochs", 1]
    assert cli("train", *model, *settings, "--run", "wide").status == 0
    description = json.loads(Path("wide/model/model.json").read_text())
    assert description["architecture"] == "own_nets:tiny"
    assert description["config"] == {"width": 10}
    assert description["widths"] == {"stem.0": 10, "depthwise": 10, "wide.0": 20, "out": 10}
    trust = ["--trust", "own_nets"]
    start = ["--init", "wide/model", "--prune.ratio", 0.3, *settings, *trust]
    shown = cli("prune", *start, "--dry-run")
    assert "out is not pruned: it makes the outputs of the network" in shown.out
    result = cli("prune", *start, "--run", "narrow", "--json").json
    assert widths(Path("narrow")) == {"stem.0": 7, "depthwise": 7, "wide.0": 14, "out": 10}
    # By hand: stem 7·25 + 7, its norm 2·7, depthwise 7·9 + 7, wide 14·7 + 14, out 10·14 + 10.
    assert result["parameters"] == 182 + 14 + 70 + 112 + 150
    report = cli("evaluate", "narrow/model", "--data", scenes, "--json", *trust).json
    assert report["parameters"] == result["parameters"]
    assert 0 <= report["macro_accuracy"] <= 1
    with torch.no_grad():
        assert cpprune.load("narrow/model", trust=["own_nets"])(torch.zeros(2, 32_000)).shape == (
            2,
            10,
        )


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_what_is_left(cli, scenes, stop_at, nets):
    model = ["--model.factory", "own_nets:Tiny", "--prune.ratio", 0.5, "--prune.start_epoch", 1]
    settings = [*model, *TRAIN, "--data.path", scenes, "--train.epochs", 2]
    settings += ["--train.checkpoint_steps", 1]
    with stop_at(8):  # in the epoch after the cut
        assert cli("prune", *settings, "--run", "stopped").status == 130
    outcome = cli("prune", *settings, "--run", "stopped")
    assert outcome.status == 0
    assert "goes on from step-00000006" in outcome.err
    assert cli("prune", *settings, "--run", "whole").status == 0
    assert widths(Path("whole"))["depthwise"] == 4
    results = [json.loads(Path(f"{run}/result.json").read_text()) for run in ("stopped", "whole")]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]


@pytest.mark.slow
def test_the_console_script_finds_it(scenes, nets):
    """The installed script has no current folder on its import path."""
    (nets / "mine.yaml").write_text(
        yaml.safe_dump({"model": {"factory": "own_nets:tiny", "arguments": {"width": 4}}})
    )
    code = "import sys; from cpprune.cli.main import run; run(sys.argv[1:])"
    command = [sys.executable, "-P", "-c", code, "info", "--config", "mine.yaml", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=True)
    assert json.loads(done.stdout)["widths"]["wide.0"] == 8


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["--model.factory", "own_nets:nothing"], "own_nets has no nothing"),
        (["--model.factory", "no_nets:tiny"], "no_nets cannot be imported"),
        (["--model.factory", "own_nets:unannotated"], "annotated to return one"),
        (["--model.factory", "subprocess:run"], "annotated to return one"),
        (["--model.factory", "own_nets"], "must be package.module:function"),
        (["--model.factory", "own_nets:too_many"], "to logits [2, 10], but gives [2, 11]"),
        (["--model.factory", "own_nets:tiny", "--model.arguments", '{"depth": 3}'], "depth"),
        (["--model.factory", "own_nets:tiny", "--model.arguments.depth", "3"], "depth"),
        (["--model.factory", "own_nets:tiny", "--model.arguments", "3"], "model.arguments"),
        (["--model.factory", "own_nets:tiny", "--model.rho", "3"], "model.rho=3"),
        (
            ["--model.factory", "own_nets:tiny", "--model.input_shape", "[1, 128, 44]"],
            "model.input_shape=[1, 128, 44]: the front end gives [1, 256, 44]",
        ),
        (["--model.argument", "3"], "did you mean model.arguments?"),
    ],
)
def test_what_is_wrong_is_one_line(cli, nets, settings, names):
    outcome = cli("info", *settings)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("cpprune: error: ")
    assert outcome.err.count("\n") == 1
    assert names in outcome.err


def test_arguments_one_by_one(cli, nets):
    given = ["--model.factory=own_nets:tiny", "--model.arguments.width=6", "--json"]
    assert cli("info", *given).json["widths"]["stem.0"] == 6
    given += ["--model.input_shape", "[1, 256, 44]"]
    assert cli("info", *given).json["input_shape"] == [1, 256, 44]


def test_what_contradicts_the_model_to_start_from(cli, scenes, nets):
    settings = [*TRAIN, "--data.path", scenes, "--train.epochs", 1]
    model = ["--model.factory", "own_nets:tiny"]
    assert cli("train", *model, *settings, "--run", "one").status == 0
    for other, name in (
        (["--model.factory", "own_nets:Tiny"], "model.factory=own_nets:Tiny"),
        ([*model, "--model.arguments", '{"width": 3}'], "model.arguments={'width': 3}"),
        (["--model.name", "cp_mobile"], "model.name=cp_mobile"),
    ):
        start = ["--init", "one/model", "--trust", "own_nets"]
        outcome = cli("train", *start, *other, *settings, "--run", "two")
        assert outcome.status == 2
        assert name in outcome.err
        assert "leave it out" in outcome.err
    assert cli("train", "--init", "one/model", *model, *settings, "--run", "two").status == 0


def test_a_folder_that_names_something_else_calls_nothing(cli, scenes, nets):
    settings = [*TRAIN, "--data.path", scenes, "--train.epochs", 1, "--run", "one"]
    assert cli("train", "--model.factory", "own_nets:tiny", *settings).status == 0
    path = Path("one/model/model.json")
    description = json.loads(path.read_text())
    description |= {"architecture": "subprocess:run", "config": {"args": ["touch", "trace"]}}
    path.write_text(json.dumps(description))
    outcome = cli("info", "one/model", "--trust", "subprocess")
    assert outcome.status == 2
    assert "model.factory=subprocess:run: is not called" in outcome.err
    assert not Path("trace").exists()
    # And where the module has gone, that is what is said.
    path.write_text(json.dumps(description | {"architecture": "gone_nets:tiny"}))
    assert "gone_nets cannot be imported" in cli("info", "one/model", "--trust=gone_nets").err


def test_cp_mobile_is_pruned_and_comes_back(cli, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [*TRAIN, "--data.path", scenes, "--train.epochs", 1, "--model.name", "cp_mobile"]
    settings += ["--features.preset", "dcase24", "--prune.ratio", 0.3]
    result = cli("prune", *settings, "--run", "run", "--json").json
    assert result["parameters"] < 0.6 * 61_148
    model = cpprune.load("run/model")
    assert model.input_shape == (1, 256, 65)
    assert widths(Path("run"))["stages.s1.b1.block.2.0"] == 22
    assert main(["info", "run/model"]) == 0
