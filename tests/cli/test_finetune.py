"""`cpprune finetune`: a model for each device, and clips that go to the model of theirs."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from marks import slow
from torch import nn

import shards
from cpprune.evaluation.predict import predict_model
from cpprune.export.classifier import load_classifier
from cpprune.models import artifact
from cpprune.models.routed import load_routed
from cpprune.training.loop import Trainer

SHORT = ["--train.epochs", 1, "--train.batch_size", 4, "--optim.schedule", "constant"]


@pytest.fixture(scope="module")
def general(tiny_run, tmp_path_factory):
    """The folder of a model that is far too sure of itself, which any training mends."""
    model = artifact.load(tiny_run / "model")
    norms = [m for m in model.network.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[-1].bias.data[0] += 8
    folder = tmp_path_factory.mktemp("general") / "model"
    artifact.save(model, folder)
    return folder


@pytest.fixture(scope="module")
def command(tiny, general, scenes):
    """Fine-tunes it for an epoch."""
    settings = [*tiny, "--train.epochs", 1, "--optim.lr", 3e-2, "--train.monitor", "log_loss"]
    return [
        "finetune",
        *settings,
        "--init",
        general,
        "--data.path",
        scenes,
        "--data.record_ids",
        "true",
    ]


@pytest.fixture(scope="module")
def folder(call, command, tmp_path_factory):
    """The folder of a finished call, of which device a alone has enough clips. Not to be changed."""
    folder = tmp_path_factory.mktemp("finetune")
    assert call(*command, "--min-clips", 30, "--run", folder / "fine") == 0
    return folder / "fine"


def test_clips_go_to_the_model_of_their_device(folder, general, scenes):
    model = load_routed(folder / "model")
    assert model.column == "device"
    assert list(model.models) == ["a"]
    split = shards.open_dataset(scenes).split("test")
    device = next(model.general.parameters()).device
    found = predict_model(model, split, device)
    tuned, untuned = (
        predict_model(artifact.load(path), split, device)
        for path in (folder / "device-a/model", general)
    )
    own = (split.column("device") == "a")[:, None]
    assert 0 < own.sum() < len(split)
    assert np.abs(tuned - untuned).max() > 1e-4
    assert np.abs(found - np.where(own, tuned, untuned)).max() < 1e-5  # other sizes of batches


def test_a_run_is_that_of_the_device_alone(folder, scenes):
    config = artifact.read_description(folder / "device-a/model")
    val = shards.open_dataset(scenes).split("val").where("device", "a")
    assert config["metrics"]["val"]["clips"] == len(val) < 22
    rows = {
        row
        for line in (folder / "device-a/ids/rank-0.jsonl").read_text().splitlines()
        for row in json.loads(line)["ids"]
    }
    assert rows == set(shards.open_dataset(scenes).split("train").where("device", "a").ids.tolist())


def test_every_command_takes_the_folder(cli, folder, scenes, scenes_source, tmp_path):
    model = folder / "model"
    report = cli("evaluate", model, "--data", scenes, "--json", "--predictions", tmp_path / "p.csv")
    general = cli("evaluate", model / "general", "--data", scenes, "--json")
    assert report.status == general.status == 0
    one, other = (json.loads(outcome.out)["per_device"] for outcome in (report, general))
    assert one["a"] != other["a"]
    assert one["s6"]["log_loss"] == pytest.approx(other["s6"]["log_loss"], rel=1e-6)
    costs = cli("info", model, "--json").json
    assert costs["general"]["parameters"] == costs["models"]["a"]["parameters"] == 2_650
    assert "all others" in cli("info", model).out
    clip = next((scenes_source / "audio").glob("*-a.wav"))
    said = [cli("predict", model, clip, "--json", *more).out for more in ([], ["--value", "a"])]
    expected = [
        cli("predict", path, clip, "--json").out for path in (model / "general", model / "device-a")
    ]
    assert said == expected
    assert said[0] != said[1]


def test_the_same_call_ends_at_once_and_others_join(cli, command, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "fine")
    outcome = cli(*command, "--min-clips", 4, "--run", tmp_path / "fine", "--json")
    assert outcome.status == 0, outcome.err
    models = outcome.json["models"]
    assert models["a"]["kept"]
    assert {value for value, result in models.items() if result["after"] is not None} > {"a"}
    for value, result in models.items():
        assert result["kept"] == (value in load_routed(tmp_path / "fine/model").models)
    weights = [
        (at / "device-a/model/model.safetensors").read_bytes() for at in (folder, tmp_path / "fine")
    ]
    assert weights[0] == weights[1]


def test_teachers_logits_are_kept_for_each_device(cli, command, general, tmp_path):
    """Devices have other clips, so each has a folder of its own below the given one."""
    taught = ["--distill.teachers", f"[{general}]", "--distill.mode", "on_the_fly"]
    cache = ["--distill.cache", tmp_path / "logits"]
    outcome = cli(*command, *taught, *cache, "--min-clips", 4, "--run", tmp_path / "fine")
    assert outcome.status == 0, outcome.err
    kept = sorted(path.relative_to(tmp_path / "logits") for path in tmp_path.glob("logits/*/*"))
    files = ("epoch-0000.npz", "logits.json")
    assert [str(path) for path in kept] == [f"device-{d}/{name}" for d in "ab" for name in files]


class Later:
    """A clock that can be put forward."""

    def __init__(self):
        self.seconds = 0.0

    def monotonic(self):
        return time.monotonic() + self.seconds

    def forward(self):
        self.seconds += 3600


@pytest.mark.parametrize("by", ["SIGTERM", "STOP", slow("the time limit")])
def test_a_stop_between_two_devices(cli, command, folder, tmp_path, monkeypatch, by):
    """Asked when nothing of the first device's run is left to do: the second is not begun."""
    out, clock = tmp_path / "fine", Later()
    command = [*command, "--min-clips", 4, "--run", out]
    ask = {
        "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "STOP": (out / "STOP").touch,
        "the time limit": clock.forward,
    }[by]

    def result(trainer):
        found = Trainer.result(trainer)
        ask()
        return found

    with monkeypatch.context() as patch:
        patch.setattr("cpprune.training.loop.Trainer", type("T", (Trainer,), {"result": result}))
        patch.setattr("cpprune.distributed.preemption.time", clock)
        outcome = cli(*command, "--train.time_limit_minutes", 30, "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.json["run"] == str(out)
    assert outcome.json["stopped"].endswith(by)
    last = outcome.err.splitlines()[-1]
    assert "after device a" in last
    assert "the same command goes on" in last
    assert (out / "device-a/result.json").exists()
    assert not (out / "device-b").exists()
    assert not (out / "model").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert cli(*command).status == 0
    assert sorted(path.name for path in out.iterdir()) == ["device-a", "device-b", "model"]
    again, whole = (place / "device-a/model/model.safetensors" for place in (out, folder))
    assert again.read_bytes() == whole.read_bytes()


def test_a_file_in_its_folder_stops_a_run(cli, command, folder, tmp_path, at_read):
    out = tmp_path / "fine"
    command = [*command, "--min-clips", 30, "--run", out]

    def ask():
        (out / "STOP").touch()

    with at_read(2, ask):
        outcome = cli(*command, "--json")
    assert outcome.json == {"run": str(out), "stopped": str(out / "STOP")}
    assert f"stopped by {out / 'STOP'} at epoch 1, batch" in outcome.err
    assert not (out / "model").exists()
    assert cli(*command).status == 0
    assert not (out / "STOP").exists()
    again, whole = (place / "device-a/model/model.safetensors" for place in (out, folder))
    assert again.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_time_limit_lets_every_call_go_on(cli, command, tmp_path):
    out, rounds = tmp_path / "fine", 0
    short = ["--min-clips", 4, "--run", out, "--train.time_limit_minutes", 1e-9]
    while not (out / "model").exists():
        assert cli(*command, *short).status == 0
        rounds += 1
        assert rounds < 20
    assert rounds > 2


def test_models_that_are_never_right(cli, command, tmp_path, monkeypatch):
    """An accuracy of 0 is an accuracy."""
    none = {"log_loss": 0.0}, None
    monkeypatch.setattr("cpprune.evaluation.predict.evaluate_model", lambda *_: none)
    outcome = cli(*command, "--min-clips", 30, "--run", tmp_path / "fine", "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.json["models"]["a"]["after"] == 0
    assert outcome.json["models"]["a"]["kept"] is False
    assert load_routed(tmp_path / "fine/model").models == {}


@pytest.fixture
def sites(call, noise_folder, tmp_path):
    """A dataset whose clips are of the site north, or of none, and a model trained on it."""
    audio = noise_folder(tmp_path / "audio")
    rows = ["filename,label,split,site"]
    for path in sorted(audio.glob("*/*.wav")):
        number, label = int(path.stem), path.parent.name
        split = "val" if number < 4 else "train"
        rows.append(f"{label}/{path.name},{label},{split},{'' if number % 2 else 'north'}")
    (audio / "table.csv").write_text("\n".join([*rows, ""]))
    build = ["shards", "build", "table", "--source", audio / "table.csv", "--group-columns", "site"]
    assert call(*build, "--out", tmp_path / "data") == 0
    train = [*SHORT, "--model.widths", "[6, 8, 10]", "--data.path", tmp_path / "data"]
    assert call("train", *train, "--run", tmp_path / "run") == 0
    return tmp_path / "data", tmp_path / "run/model"


def test_clips_of_empty_cells_keep_the_general_model(cli, sites, tmp_path):
    data, model = sites
    command = ["finetune", "--per", "site", "--min-clips", 2, "--init", model, *SHORT]
    out = tmp_path / "fine"
    outcome = cli(*command, "--data.path", data, "--run", out, "--json")
    assert outcome.status == 0, outcome.err
    found = outcome.json["models"]
    assert {value: own["clips"] for value, own in found.items()} == {"": 6, "north": 6}
    assert found["north"]["after"] is not None
    assert found[""] == {**found[""], "before": None, "after": None, "kept": False}
    assert sorted(path.name for path in out.iterdir()) == ["model", "site-north"]
    again = cli(*command, "--data.path", data, "--run", out)
    assert "no site" in again.out


def test_mistakes(refused, command, general, folder, tiny_run, scenes, tmp_path):
    out = tmp_path / "out"
    refused(*command, "--min-clips", 1000, "--run", out, names=["device", "1000", "--min-clips"])
    refused(*command, "--min-clips", "few", "--run", out, names=["--min-clips few"])
    refused(*command, "--per", "devise", "--run", out, names=["devise", "did you mean"])
    refused(*command, "--init_head", "new", "--run", out, names=["init_head=new", general, "first"])
    assert not out.exists()
    refused(*command, "--per", "a=b", "--run", out, names=["--per a=b", "rename"])
    refused(*command, "--data.only", "device=a", "--run", out, names=["data.only"])
    refused(
        "train",
        "--data.path",
        scenes,
        "--data.only",
        "device=x",
        names=["data.only=device=x", "a, b"],
    )
    words = ["--dry-run", "--prune.criterion", "taylor", "--prune.ratio", 0.5, "--init", general]
    words += ["--data.path", scenes, "--data.only", "device=x"]
    refused("prune", *words, names=["data.only=device=x", "a, b"])
    refused("train", "--data.path", scenes, "--data.only", "device", names=["data.only=device"])
    refused("finetune", "--data.path", scenes, "--run", out, names=["--init"])
    refused("predict", tiny_run / "model", "x.wav", "--value", "a", names=["--value a"])
    refused("evaluate", folder, "--data", scenes, names=[folder / "model"])
    refused("export", folder / "model", "--out", tmp_path / "x.onnx", names=["general"])
    (tmp_path / "taken/model").mkdir(parents=True)
    (tmp_path / "taken/model/notes.txt").touch()
    refused(*command, "--run", tmp_path / "taken", names=[tmp_path / "taken/model", "notes.txt"])


@pytest.mark.parametrize("name", ["ensemble", "logits"])
def test_models_that_are_averaged_are_one_each(cli, refused, folder, scenes, tmp_path, name):
    """Their help offers what they take."""
    shown = " ".join(cli(name, "--help").out.split())
    assert "(of `cpprune finetune`, its folder general)" in shown
    assert "one of `cpprune finetune`" not in shown
    command = [name, folder / "model", "--data", scenes]
    command += ["--out", tmp_path / "logits.npz"] if name == "logits" else []
    refused(*command, names=["a model for each device", folder / "model/general"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": {"a": "../elsewhere"}}, "elsewhere"),
        ({"models": {"a": "gone"}}, "gone"),
        ({"format": 2}, "format 2"),
        ({"models": ["a"]}, "models"),
    ],
)
def test_damaged_folders(refused, folder, scenes, tmp_path, change, says):
    shutil.copytree(folder / "model", tmp_path / "model")
    routes = json.loads((tmp_path / "model/routes.json").read_text())
    (tmp_path / "model/routes.json").write_text(json.dumps(routes | change))
    refused("evaluate", tmp_path / "model", "--data", scenes, names=[tmp_path / "model", says])


def test_models_that_do_not_belong_together(refused, folder, scenes, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    model = artifact.load(tmp_path / "model/device-a")
    model.classes = tuple(reversed(model.classes))
    artifact.save(model, tmp_path / "model/device-a")
    refused("evaluate", tmp_path / "model", "--data", scenes, names=["device-a", "classes"])
    assert load_classifier(folder / "model/device-a").classes == tuple(reversed(model.classes))
