"""Runs for reports: a small pruned one, and copies of a finished one that are changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import Page


@pytest.fixture(scope="session")
def pruned_run(
    call: Callable[..., int], tiny_run: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run with two cuts, as it came about. Tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "pruned"
    settings = ["--init", tiny_run / "model", "--data.path", scenes, "--train.batch_size", 16]
    settings += ["--prune.ratio", 0.5, "--prune.steps", 2, "--train.epochs", 3]
    settings += ["--optim.schedule", "constant"]
    assert call("prune", *settings, "--run", folder) == 0
    return folder


@pytest.fixture
def page_of(cli: Callable[..., Any], tmp_path: Path) -> Callable[..., Page]:
    """Makes the report of a run and reads it."""

    def make(run: Path, *arguments: object) -> Page:
        out = tmp_path / "page.html"
        outcome = cli("report", run, "--out", out, *arguments)
        assert outcome.status == 0, outcome.err
        assert outcome.err == f"report: {out}\n"
        return Page(out)

    return make


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Path]:
    """Copies a run, with other settings or validation figures, and returns the copy's folder."""

    def copy(run: Path, name: str, settings: Any = (), **figures: float) -> Path:
        folder = tmp_path / "runs" / name
        shutil.copytree(run, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        for key, value in dict(settings).items():
            part, _, last = key.rpartition(".")
            (config[part] if part else config)[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        path = folder / "model/model.json"
        description = json.loads(path.read_text())
        description["metrics"]["val"].update(figures)
        path.write_text(json.dumps(description))
        return folder

    return copy
