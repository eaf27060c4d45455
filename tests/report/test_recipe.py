"""Runs that began with a model are seeds of one thing wherever `compare` is called."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import yaml


def change_model(model: Path, **changes: Any) -> str:
    """Give a model folder weights of its own and other provenance; return their sha256."""
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    name = sorted(tensors)[0]
    payload = safetensors.torch.save(
        {
            n: t + len(str(model)) * 1e-3 + hash_of(model) if n == name else t
            for n, t in tensors.items()
        }
    )
    (model / "model.safetensors").write_bytes(payload)
    about = json.loads((model / "model.json").read_text())
    about["weights"]["sha256"] = hashlib.sha256(payload).hexdigest()
    about["provenance"] |= changes
    (model / "model.json").write_text(json.dumps(about))
    sha256: str = about["weights"]["sha256"]
    return sha256


def hash_of(path: Path) -> float:
    return int(hashlib.sha256(str(path).encode()).hexdigest()[:6], 16) / 1e9


def change_settings(run: Path, **changes: Any) -> None:
    tree = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(tree | changes))


@pytest.fixture
def project(tiny_run: Path, pruned_run: Path, tmp_path: Path) -> Path:
    """Two seeds of a run and of what was cut out of each, begun in the folder that is returned."""
    project = tmp_path / "some project"
    for seed in (0, 1):
        wide = shutil.copytree(tiny_run, project / f"runs/wide-{seed}")
        narrow = shutil.copytree(pruned_run, project / f"runs/narrow-{seed}")
        sha256 = change_model(wide / "model", init=None)
        change_model(narrow / "model", init=sha256)
        change_settings(wide, seed=seed)
        change_settings(narrow, seed=seed, init=f"runs/wide-{seed}/model")
    return project


@pytest.mark.parametrize("where", [".", "runs", "/"])
def test_seeds_are_found_from_every_folder(
    cli: Any, project: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.chdir(project / where)
    folders = [os.path.relpath(project / f"runs/narrow-{seed}") for seed in (0, 1)]
    found = cli("compare", *folders, "--json").json
    assert [group["seeds"] for group in found["groups"]] == [[0, 1]]
    assert found["notes"] == []


def test_runs_that_moved_are_found_beside_each_other(cli: Any, project: Path) -> None:
    (project / "runs").rename(project / "elsewhere")
    folders = [project / f"elsewhere/narrow-{seed}" for seed in (0, 1)]
    assert [group["seeds"] for group in cli("compare", *folders, "--json").json["groups"]] == [
        [0, 1]
    ]


def test_another_model_at_that_place_is_not_taken_for_it(cli: Any, project: Path) -> None:
    """It was trained again since, with something else."""
    change_model(project / "runs/wide-1/model", init=None, epoch=77)
    tensors = safetensors.torch.load_file(project / "runs/wide-1/model/model.safetensors")
    assert tensors
    folders = [project / f"runs/narrow-{seed}" for seed in (0, 1)]
    found = cli("compare", *folders, "--json").json
    assert [group["seeds"] for group in found["groups"]] == [[1], [0]] or [
        group["seeds"] for group in found["groups"]
    ] == [[0], [1]]
    (note, _) = found["notes"]
    assert "narrow-1 started from a model that is not found (runs/wide-1/model)" in note


def test_seeds_of_one_model_that_is_gone(cli: Any, project: Path) -> None:
    sha256 = json.loads((project / "runs/wide-0/model/model.json").read_text())["weights"]["sha256"]
    change_model(project / "runs/narrow-1/model", init=sha256)
    shutil.rmtree(project / "runs/wide-0")
    shutil.rmtree(project / "runs/wide-1")
    folders = [project / f"runs/narrow-{seed}" for seed in (0, 1)]
    found = cli("compare", *folders, "--json").json
    assert [group["seeds"] for group in found["groups"]] == [[0, 1]]
    assert len(found["notes"]) == 2


def test_an_older_run_lacks_settings_that_came_later(
    cli: Any, tiny_run: Path, tmp_path: Path
) -> None:
    folders = [shutil.copytree(tiny_run, tmp_path / f"run-{seed}") for seed in (0, 1)]
    change_settings(folders[1], seed=1)
    tree = yaml.safe_load((folders[1] / "config.yaml").read_text())
    del tree["train"]["ema_decay"]
    (folders[1] / "config.yaml").write_text(yaml.safe_dump(tree))
    found = cli("compare", *folders, "--json").json
    assert [group["seeds"] for group in found["groups"]] == [[0, 1]]


# --- printed commands and times ---


def test_commands_that_are_printed_can_be_given_to_a_shell(
    cli: Any, tiny: list[str], scenes: Path, tmp_path: Path
) -> None:
    import shlex

    data, run = tmp_path / "the data", tmp_path / "it's a run"
    data.symlink_to(scenes)
    settings = [*tiny, "--data.path", data, "--run", run, "--data.train_fraction", 0.25]
    outcome = cli("train", *settings, "--train.epochs", 1, "--track", "none")
    assert outcome.status == 0, outcome.err
    command = outcome.err.partition("next: ")[2].splitlines()[0]
    words = shlex.split(command)
    assert words == ["cpprune", "evaluate", str(run / "model"), "--data", str(data)]
    audio = tmp_path / "some audio"
    outcome = cli("shards", "synth", "--out", audio, "--clips", 200)
    words = shlex.split(outcome.out.partition("next: ")[2])
    assert words[:6] == ["cpprune", "shards", "build", "tau2022", "--source", str(audio)]


def test_the_time_of_a_training_is_that_of_all_its_starts(
    cli: Any, tiny: list[str], scenes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = [*tiny, "--data.path", scenes, "--run", run, "--data.train_fraction", 0.25]
    settings += ["--train.epochs", 2]
    assert cli("train", *settings, "--train.time_limit_minutes", 1e-9).status == 0
    (state,) = run.glob("checkpoints/*/state.json")
    from run_folder import change_state

    assert 0 < json.loads(state.read_text())["progress"]["seconds"] < 3600
    change_state(run, lambda state: state["progress"].update(seconds=5000.0))
    assert cli("train", *settings).status == 0
    seconds = [
        json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert 5000 < seconds[0] < seconds[1] < 8600
    assert cli("report", run).status == 0
    from pages import Page

    assert "1 h 23 min" in Page(run / "report.html").text
