"""`cpprune submit`: the package is called as the organisers' scripts of DCASE 2025 call it."""

import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import cpprune
import shards
from cpprune.cli.main import main
from cpprune.evaluation.predict import predict_model
from cpprune.models import artifact
from cpprune.models.routed import load_routed, save_routed
from cpprune.submission.runtime import System

# What the organisers do: predictions and complexity of a system, by its module's four functions.
CALLER = """
import importlib, json, sys
import torch, torchinfo

package, root, index = sys.argv[1:]
import cpprune
api = importlib.import_module(f"{package}.{package}_{index}")
lines = open(f"{root}/test.csv").read().splitlines()
rows = [line.split("\\t") for line in lines]
files, devices = [f"{root}/{name}" for name, _ in rows], [device for _, device in rows]
logits, classes = api.predict(files, devices, model_file_path=None, use_cuda=False)
model = api.load_model()
costs = {}
for x, device in zip(api.load_inputs(files[:2], ["a", "s9"], model), ["a", "s9"]):
    network = api.get_model_for_device(model, device)
    macs = torchinfo.summary(network.float(), input_size=tuple(x.shape), verbose=0).total_mult_adds
    again = api.get_model_for_device(model, device)
    costs[device] = [macs, sum(p.numel() * p.element_size() for p in again.parameters())]
tensors = model.model.state_dict()
print(json.dumps({"logits": [row.tolist() for row in logits], "classes": classes, "costs": costs,
                  "cpprune": cpprune.__file__, "tensors": len(tensors)}))
"""


OWN_NETWORK = """
from torch import nn


def small(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, num_classes))
"""


@pytest.fixture(scope="module")
def models(tiny_run, tmp_path_factory):
    """Routed models of which device a's is another than the general one."""
    folder = tmp_path_factory.mktemp("submission")
    other = artifact.load(tiny_run / "model")
    for parameter in other.network.parameters():
        parameter.data += 0.05
    artifact.save(other, folder / "other")
    save_routed(folder / "routed", "device", tiny_run / "model", {"a": folder / "other"})
    return folder / "routed"


@pytest.fixture(scope="module")
def evaluation(scenes_source, tmp_path_factory):
    """An evaluation set as that of 2025: the clips of some devices, most of which are known."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "audio").symlink_to(scenes_source / "audio")
    names = sorted(path.name for path in (scenes_source / "audio").iterdir())[::20]
    (folder / "evaluation_setup").mkdir()
    rows = [f"audio/{name}\t{'a' if k % 2 else 'unknown'}" for k, name in enumerate(names)]
    text = "\n".join(["filename\tdevice_id", *rows, ""])
    (folder / "evaluation_setup/fold1_test.csv").write_text(text)
    (folder / "test.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def submission(models, tiny_run, scenes, evaluation, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new/submission"
    command = ["submit", models, tiny_run / "model", "--label", "Doe_LAB", "--data", scenes]
    assert main([*map(str, command), "--evaluation", str(evaluation), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def called(submission, evaluation, tmp_path_factory):
    """What the installed package answers, in a process that knows no other cpprune."""
    place = tmp_path_factory.mktemp("installed")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*install, "--target", place, submission], check=True, timeout=600)
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, "-c", CALLER, "Doe_LAB_task1", str(evaluation), "1"]
    out = subprocess.run(
        command, env=environment, cwd=place, check=True, capture_output=True, timeout=600
    )
    answer = json.loads(out.stdout)
    assert answer["cpprune"].startswith(str(place))
    return answer


@pytest.mark.slow
def test_the_installed_package_predicts_as_the_models_do(called, models, scenes, evaluation):
    model = load_routed(models)
    split = shards.open_dataset(scenes)
    assert called["classes"] == list(split.classes)
    expected = []
    for line in (evaluation / "test.csv").read_text().splitlines():
        name, device = line.split("\t")
        key = name.removeprefix("audio/").removesuffix(".wav")
        (part,) = [s for s in map(split.split, split.splits) if key in s.keys]
        clip = torch.from_numpy(part.fetch([part.keys.index(key)]))
        expected.append(model.model_for(device).logits(clip)[0].tolist())
    assert np.abs(np.array(called["logits"]) - expected).max() < 1e-4
    assert len(expected) == 10


@pytest.mark.slow
def test_complexity_is_that_of_the_organisers(called, submission):
    costs = json.loads((submission / "predictions/Doe_LAB_task1_1/complexity.json").read_text())
    for device, (macs, size) in called["costs"].items():
        assert costs["per_device"][device] == {"MACs": macs, "Params": size}
    assert costs["max_Params"] == 4 * 2_650
    assert len(costs["per_device"]) == 13


def test_what_is_handed_in(submission, models, scenes, evaluation):
    results = submission / "predictions/Doe_LAB_task1_1"
    with (results / "output.csv").open() as file:
        head, *rows = csv.reader(file, delimiter="\t")
    classes = list(shards.open_dataset(scenes).classes)
    assert head == ["filename", "scene_label", *classes]
    names = [line.split("\t")[0] for line in (evaluation / "test.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == names
    for row in rows:
        values = [float(value) for value in row[2:]]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert row[1] == classes[int(np.argmax(values))]
    test = shards.open_dataset(scenes).split("test")
    logits = predict_model(load_routed(models), test, torch.device("cpu"))
    accuracy = (logits.argmax(1) == test.labels).mean()
    told = json.loads((results / "test_accuracy.json").read_text())
    assert told == {"Test Accuracy": round(100 * accuracy, 2)}
    state = torch.load(results / "model_state_dict.pt", weights_only=True)
    assert sum(t.numel() for t in state.values() if t.is_floating_point()) > 2 * 2_650
    assert (submission / "predictions/Doe_LAB_task1_2/output.csv").is_file()
    listed = (submission / "Doe_LAB_task1/resources/test.csv").read_text().splitlines()
    assert listed[0] == "filename\tscene_label"
    assert len(listed) == 1 + len(test)


def test_large_networks_count_and_are_rounded_as_float16(cli, scenes, tmp_path):
    """At 44,784 parameters, float32 is too large and float16 is not."""
    widths = ["--model.widths", "[18, 37, 75]", "--train.epochs", 1, "--data.train_fraction", 0.05]
    train = ["train", *widths, "--data.path", scenes, "--run", tmp_path / "run"]
    assert cli(*train).status == 0
    out = tmp_path / "out"
    outcome = cli(
        "submit", tmp_path / "run/model", "--label", "Doe_LAB", "--data", scenes, "--out", out
    )
    assert outcome.status == 0, outcome.err
    assert "no output.csv" in outcome.err
    assert not list(out.rglob("output.csv"))
    (state,) = out.rglob("model_state_dict.pt")
    tensors = torch.load(state, weights_only=True)
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
    costs = json.loads((out / "predictions/Doe_LAB_task1_1/complexity.json").read_text())
    assert costs["max_Params"] == 2 * 44_784
    folder = out / "Doe_LAB_task1/ckpts/1"
    computing = System(folder, half=True).load_model().routed.general.network
    counted = System(folder, half=True).get_model_for_device(
        System(folder, half=True).load_model(), "a"
    )
    trained = artifact.load(folder).network
    for own, rounded, exact in zip(
        computing.parameters(), counted.parameters(), trained.parameters(), strict=True
    ):
        assert torch.equal(own, exact.half().float())
        assert torch.equal(own, rounded.float())


def test_file_names_of_2024_have_no_folder(cli, tiny_run, scenes, evaluation, tmp_path):
    command = ["submit", tiny_run / "model", "--label", "Doe_LAB", "--data", scenes, "--year", 2024]
    assert cli(*command, "--evaluation", evaluation, "--out", tmp_path / "out").status == 0
    rows = (tmp_path / "out/predictions/Doe_LAB_task1_1/output.csv").read_text().splitlines()[1:]
    listed = (evaluation / "test.csv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == [
        line.split("\t")[0].removeprefix("audio/") for line in listed
    ]


@pytest.fixture
def hums(call, noise_folder, tmp_path):
    """A dataset that knows no devices, and a model trained on it."""
    audio, data = noise_folder(tmp_path / "audio"), tmp_path / "data"
    build = ["--seconds", 1, "--sample-rate", 32_000]
    assert call("shards", "build", "folder", "--source", audio, "--out", data, *build) == 0
    train = ["--model.widths", "[6, 8, 10]", "--train.epochs", 1, "--train.batch_size", 4]
    train += ["--optim.schedule", "constant", "--data.path", data]
    assert call("train", *train, "--run", tmp_path / "run") == 0
    return data, tmp_path / "run/model"


def test_one_model_needs_no_devices(cli, refused, hums, tmp_path):
    data, model = hums
    save_routed(tmp_path / "none", "device", model, {})
    save_routed(tmp_path / "some", "device", model, {"a": model})
    command = ["--label", "Doe_LAB", "--data", data, "--out", tmp_path / "out"]
    refused("submit", tmp_path / "some", *command, names=["no column 'device'"])
    outcome = cli("submit", model, tmp_path / "none", *command, "--json")
    assert outcome.status == 0, outcome.err
    one, other = outcome.json["systems"]
    assert one["accuracy"] == other["accuracy"]


def test_models_of_another_column_than_the_device(refused, tiny_run, scenes, tmp_path):
    """The organisers tell a system the device of a clip and nothing else."""
    save_routed(tmp_path / "cities", "city", tiny_run / "model", {"lyon": tiny_run / "model"})
    command = ["submit", tmp_path / "cities", "--label", "Doe_LAB", "--data", scenes]
    names = [tmp_path / "cities", "by city", "--per device"]
    refused(*command, "--out", tmp_path / "out", names=names)
    assert not (tmp_path / "out").exists()


def test_a_network_of_the_users_own_code(refused, tiny_run, scenes, tmp_path, monkeypatch):
    """The package holds no module but cpprune's, and nobody could load it there."""
    (tmp_path / "submitted_nets.py").write_text(OWN_NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = artifact.load(tiny_run / "model")
    model.network = cpprune.build_model("submitted_nets:small", num_classes=len(model.classes))
    model.family, model.config = "submitted_nets:small", {}
    artifact.save(model, tmp_path / "own")
    save_routed(tmp_path / "routed", "device", tiny_run / "model", {"a": tmp_path / "own"})
    trusted = ["--label", "Doe_LAB", "--data", scenes, "--trust", "submitted_nets"]
    for name in ("own", "routed"):
        command = ["submit", tmp_path / name, *trusted, "--out", tmp_path / "out"]
        refused(*command, names=[tmp_path / name, "made by submitted_nets:small", "model.name"])
    sys.modules.pop("submitted_nets")
    assert not (tmp_path / "out").exists()


def test_a_signal_leaves_nothing_behind(cli, tiny_run, scenes, tmp_path, monkeypatch):
    def measure(*_):
        assert len(list(tmp_path.iterdir())) == 1
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # so that it cannot end the tests
    try:
        monkeypatch.setattr("cpprune.submission.package._measure", measure)
        command = ["submit", tiny_run / "model", "--label", "Doe_LAB", "--data", scenes]
        outcome = cli(*command, "--out", tmp_path / "out")
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.status == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_mistakes(refused, models, big_model, scenes, evaluation, tmp_path):
    out = tmp_path / "out"
    command = ["submit", models, "--data", scenes, "--out", out]
    refused(*command, "--label", "me", names=["--label me", "Schmid_CPJKU"])
    more = [models] * 4
    refused("submit", *more, *command[1:], "--label", "Doe_LAB", names=["5 models", "at most 4"])
    refused(*command, "--label", "Doe_LAB", "--evaluation", tmp_path, names=["fold1_test.csv"])
    large = ["submit", big_model, *command[2:], "--label", "Doe_LAB"]
    refused(*large, names=[big_model, "128,000", "prune it"])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").touch()
    refused(*command[:-1], tmp_path / "taken", "--label", "Doe_LAB", names=["taken", "notes.txt"])
    listed = tmp_path / "evaluation/evaluation_setup/fold1_test.csv"
    listed.parent.mkdir(parents=True)
    listed.write_text("filename\tdevice_id\naudio/gone.wav\ta\n")
    gone = tmp_path / "evaluation/audio/gone.wav"
    refused(*command, "--label", "Doe_LAB", "--evaluation", tmp_path / "evaluation", names=[gone])
    gone.parent.mkdir()
    gone.write_bytes(b"RIFF")
    refused(*command, "--label", "Doe_LAB", "--evaluation", tmp_path / "evaluation", names=[gone])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation", "taken"]
