"""Run folders, sweeps and other files that somebody forged or damaged: a line each, no traceback."""

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import cpprune
from cpprune.audio.config import PRESETS
from cpprune.audio.frontend import build_features
from cpprune.cli.summarise import read_report
from cpprune.config import RunConfig
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.resize import layer_widths
from cpprune.pruning.curves import read_sensitivity
from cpprune.pruning.plan import read_plan
from cpprune.report.run_folder import read_run
from cpprune.runs import checkpoint
from cpprune.runs.folder import truncate_ids
from cpprune.runs.identity import RunIdentity
from cpprune.runs.log import RunLog
from cpprune.sweeps.trial import read_epochs, read_result
from shards.errors import UserError

VAL = {"macro_accuracy": 0.5, "accuracy": 0.5, "log_loss": 1.5}
EPOCH = {
    "epoch": 0,
    "step": 4,
    "lr": 0.1,
    "train_loss": 2.0,
    "val_log_loss": 1.5,
    "val_macro_accuracy": 0.5,
    "val_accuracy": 0.5,
    "seconds": 1.0,
    "clips_per_second": 10.0,
    "memory_bytes": 1000,
    "best": True,
}
CUT = {
    "event": "prune",
    "epoch": 0,
    "parameters_before": 9,
    "parameters": 8,
    "criterion": "magnitude",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch, as a run writes it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    network = cpprune.build_model("cp_resnet", num_classes=3, widths=[4, 5, 6])
    model = Model(
        network,
        build_features(PRESETS["cpjku22_256"]),
        family="cp_resnet",
        config={"widths": [4, 5, 6]},
        classes=["bus", "park", "tram"],
        clip_shape=(32_000,),
        metadata={
            "provenance": {
                "epoch": 0,
                "seed": 0,
                "init": None,
                "dataset": "0" * 64,
                "pruning": None,
            },
            "metrics": {"val": VAL},
        },
    )
    artifact.save(model, folder / "model")
    (folder / "config.yaml").write_text(yaml.safe_dump(RunConfig().to_dict()))
    (folder / "environment.json").write_text(
        json.dumps({"host": "here", "gpus": [], "packages": {}})
    )
    cut = CUT | {"widths": layer_widths(network)}
    (folder / "metrics.jsonl").write_text(f"{json.dumps(cut)}\n{json.dumps(EPOCH)}\n")
    (folder / "result.json").write_text(json.dumps({"parameters": 8, "macs": 9, "val": VAL}))
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


BROKEN = [b"", b"null", b"[]", b"3", b'"x"', b"\xff\xfe", b"[" * 50_000, b'{"a":' * 5000, b"9" * 5000,
          b'{"x": "\\u0000"}', b'{"x": 1e999}', b'{"a": 1, "a": 2}', b"{", b"\0" * 100,
          b'{"x": "\\ud800"}']  # fmt: skip

FILES = ["environment.json", "metrics.jsonl", "result.json", "model/model.json", "config.yaml"]


def both(cli: Callable[..., Any], run: Path) -> None:
    """Report and compare it: a page or one line, and never a traceback."""
    for words in (["report", run, "--out", "page.html"], ["compare", run, "--json"]):
        outcome = cli(*words)
        assert outcome.status in (0, 2)
        assert "Traceback" not in outcome.err
        if outcome.status == 2:
            assert outcome.err.count("\n") == 1
            assert outcome.out == ""


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_run_that_break_readers(cli, run, name):
    for data in BROKEN[::4]:
        (run / name).write_bytes(data)
        both(cli, run)


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_in_a_run(cli, run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    both(cli, run)
    (run / name).unlink()
    (run / name).mkdir()
    both(cli, run)


def put(*path: Any) -> Callable[[Any], None]:
    *keys, last, value = path

    def change(document: Any) -> None:
        for key in keys:
            document = document[key]
        document[last] = value

    return change


STRANGE: list[Any] = ["x", -1, [], {}, None, True, 10**18, 1.5, [[]], {"a": None}]


@pytest.mark.parametrize("key", sorted(EPOCH))
def test_an_epoch_of_another_kind(cli, run, key):
    lines = [json.dumps(EPOCH | {key: value}) for value in STRANGE]
    lines += [json.dumps({k: v for k, v in EPOCH.items() if k != key})]
    (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(EPOCH), '{"epoch": ']))
    both(cli, run)
    found = read_run(run)
    assert found.epochs[-1].epoch == 0
    assert any("damaged and left out" in note for note in found.notes)


@pytest.mark.parametrize("key", [*CUT, "widths"])
def test_a_cut_of_another_kind(cli, run, key):
    cut = CUT | {"widths": {"in_c.0": 4}}
    lines = [json.dumps(cut | {key: value}) for value in STRANGE]
    (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(EPOCH)]) + "\n")
    both(cli, run)


def test_half_a_line_is_what_a_killed_run_leaves(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "lr')
    assert len(read_run(run).epochs) == 1
    assert len(read_epochs(run)) == 1
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="line 3"):
        read_epochs(run)


@pytest.mark.parametrize(
    "path",
    [("provenance",), ("provenance", "epoch"), ("provenance", "dataset"), ("provenance", "pruning"),
     ("metrics",), ("metrics", "val"), ("metrics", "val", "macro_accuracy"),
     ("metrics", "val", "log_loss")],
)  # fmt: skip
def test_a_model_that_says_strange_things_of_itself(cli, run, path):
    file = run / "model/model.json"
    content = json.loads(file.read_text())
    for value in STRANGE[::2]:
        changed = copy.deepcopy(content)
        put(*path, value)(changed)
        file.write_text(json.dumps(changed))
        both(cli, run)


@pytest.mark.parametrize(
    "key",
    ["seed", "init", "data.path", "data.cache_bytes", "train", "prune.budget", "train.epochs"],
)
def test_settings_of_another_kind(cli, run, key):
    content = yaml.safe_load((run / "config.yaml").read_text())
    for value in STRANGE[::2]:
        changed = copy.deepcopy(content)
        put(*key.split("."), value)(changed)
        (run / "config.yaml").write_text(yaml.safe_dump(changed))
        both(cli, run)


def test_a_config_that_breaks_readers_is_a_line(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data in [
        *BROKEN,
        b"a: &a [*a]",
        b"1: 2",
        b"model: [*x]",
        b"seed: 1\nseed: 2",
        b"? [a]\n: b",
    ]:
        Path("run.yaml").write_bytes(data)
        outcome = cli("info", "--config", "run.yaml")
        assert outcome.status == 2
        assert outcome.err.count("\n") == 1


def test_results_of_trials(run):
    for data in (*BROKEN, b'{"parameters": "x"}', b'{"macs": []}'):
        (run / "result.json").write_bytes(data)
        with pytest.raises(UserError, match=r"result\.json"):
            read_result(run)
    for key in ("val_macro_accuracy", "epoch", "best"):
        (run / "metrics.jsonl").write_text(json.dumps(EPOCH | {key: "x"}) + "\n")
        with pytest.raises(UserError, match="line 1"):
            read_epochs(run)


def test_evaluations(cli, tmp_path):
    file = tmp_path / "x.json"
    for data in (*BROKEN, b'{"macro_accuracy": "x"}', b'{"macro_accuracy": [], "x": 1}'):
        file.write_bytes(data)
        outcome = cli("summarise", file, file)
        assert outcome.status == 2
        assert outcome.err.count("\n") == 1
        with pytest.raises(UserError, match=r"x\.json"):
            read_report(file)


def test_plans_and_sensitivities(tmp_path):
    network, file = cpprune.build_model("cp_resnet"), tmp_path / "x.json"
    plan = {"structure": "x", "weights": "x", "groups": [{"layer": "a", "width": 3, "keep": [0]}]}
    group, layer = plan["groups"][0], {"layer": "a", "width": 3, "widths": [2], "log_loss": [1.0]}
    curves = {"format": 1, "criterion": "x", "baseline": {"log_loss": 1.0}, "layers": [layer]}
    forged = [json.dumps(plan | {"groups": value}).encode() for value in STRANGE]
    forged += [json.dumps(plan | {"groups": [group | {key: value}]}).encode()
               for value in STRANGE for key in ("layer", "width", "keep", "score_kept")]  # fmt: skip
    forged += [json.dumps(curves | {key: value}).encode() for value in STRANGE for key in curves]
    forged += [json.dumps(curves | {"layers": [layer | {key: value}]}).encode()
               for value in STRANGE for key in layer if (key, value) != ("layer", "x")]  # fmt: skip
    for data in (*BROKEN, *forged):
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"x\.json") as error:
            read_plan(file, network, (1, 256, 44))
        assert "\n" not in str(error.value)
        with contextlib.suppress(UserError):  # nothing else
            read_sensitivity(file)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tensors = checkpoint.Tensors({"a": torch.zeros(2)}, {}, {})
    identity = RunIdentity({}, None, "x", None)
    checkpoint.save(tmp_path, 1, checkpoint.Progress(epoch=1, step=3), identity, tensors, None)
    return tmp_path / "step-00000003"


def reseal(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_checkpoints(saved):
    state = json.loads((saved / "state.json").read_text())
    assert checkpoint.read(saved).progress.step == 3
    forged = list(BROKEN)
    places = [(key,) for key in ("progress", "identity", "format")]
    places += [("progress", key) for key in state["progress"] if key not in ("best", "seconds")]
    places += [("identity", key) for key in ("settings", "dataset")]
    for place in places:
        for value in ("x", {"a": "b"}, -5, 1.5, [{}], 10**25):
            if place[-1] in ("settings",) and isinstance(value, dict):
                continue
            if place[-1] == "dataset" and value == "x":
                continue
            changed = copy.deepcopy(state)
            put(*place, value)(changed)
            forged.append(json.dumps(changed).encode())
    for data in forged:
        reseal(saved, "state.json", data)
        with pytest.raises(UserError, match="is damaged or does not fit") as error:
            pytest.fail(f"read {checkpoint.read(saved)}: {data[:300]!r}")
        assert "\n" not in str(error.value)
    reseal(saved, "state.json", json.dumps(state).encode())
    for data in (b"", (2**62).to_bytes(8, "little"), b"\xff" * 100):
        reseal(saved, "network.safetensors", data)
        with pytest.raises(UserError, match=r"network\.safetensors"):
            checkpoint.read(saved)
    for data in BROKEN:
        (saved / "manifest.json").write_bytes(data)
        with pytest.raises(UserError):
            checkpoint.read(saved)


def test_metrics_are_not_lengthened_to_what_a_checkpoint_says(run):
    size = (run / "metrics.jsonl").stat().st_size
    RunLog(run, 0).truncate(1 << 40)
    assert (run / "metrics.jsonl").stat().st_size == size


def test_recorded_ids_that_are_damaged_are_cut_away(tmp_path):
    (tmp_path / "ids").mkdir()
    file = tmp_path / "ids/rank-0.jsonl"
    good = b'{"epoch": 0, "batch": 1, "ids": [3]}\n'
    file.write_bytes(good + b'{"epoch": "x"}\n\xff\n[]\n{"epoch": 0, "batch": 9}\n{"epo')
    truncate_ids(tmp_path, 0, 5)
    assert file.read_bytes() == good
