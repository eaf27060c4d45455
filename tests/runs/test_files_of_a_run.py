"""Files that a configuration names: a run goes on only with what they held."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def curves(
    tiny_run: Path, scenes: Path, call: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    settings = ["--data", scenes, "--ratios", "0.4,0.8", "--out", folder]
    assert call("sensitivity", tiny_run / "model", *settings) == 0
    return folder / "sensitivity.json"


@pytest.fixture
def settings(tiny_run: Path, scenes: Path, tmp_path: Path) -> list[Any]:
    given = ["--init", tiny_run / "model", "--data.path", scenes, "--data.train_fraction", 0.25]
    given += ["--train.epochs", 1, "--train.batch_size", 16, "--optim.schedule", "constant"]
    return ["prune", *given, "--run", tmp_path / "run"]


@pytest.mark.slow
def test_the_curves_of_a_run(curves: Path, settings: list[Any], tmp_path: Path, cli: Cli) -> None:
    file = shutil.copy(curves, tmp_path / "mine.json")
    scope = ["--prune.scope", "sensitivity", "--prune.sensitivity"]
    how = [*scope, file, "--prune.budget", "params<=1500,macs<=3e5"]
    planned = cli(*settings, *how, "--dry-run", "--json").json
    result = cli(*settings, *how, "--json").json
    assert result["parameters"] == planned["after"]["parameters"] <= 1500
    assert result["macs"] == planned["after"]["macs"] <= 300_000
    # The same curves in another place are the same.
    elsewhere = shutil.move(file, tmp_path / "elsewhere.json")
    how[3] = elsewhere
    assert cli(*settings, *how, "--json").json == result
    # Others are not.
    content = json.loads(Path(elsewhere).read_text())
    content["layers"][0]["log_loss"][0] += 1e-6
    Path(elsewhere).write_text(json.dumps(content))
    refused = cli(*settings, *how)
    assert refused.status == 2
    assert "run with other settings (prune.sensitivity: sha256 " in refused.err
    assert refused.err.count("\n") == 1
    Path(elsewhere).unlink()
    refused = cli(*settings, *how)
    assert refused.status == 2
    assert f"{elsewhere}: cannot be read (No such file or directory)" in refused.err


def test_the_plan_of_a_run(settings: list[Any], tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "plan.json"
    saved = cli(*settings, "--prune.ratio", 0.4, "--dry-run", "--prune.save_plan", file)
    assert saved.status == 0
    how = ["--prune.plan", file]
    result = cli(*settings, *how, "--json").json
    assert cli(*settings, *how, "--json").json == result
    plan = json.loads(file.read_text())
    plan["groups"].pop()
    file.write_text(json.dumps(plan))
    refused = cli(*settings, *how)
    assert refused.status == 2
    assert "run with other settings (prune.plan: sha256 " in refused.err
    # Begun anew, the other plan is followed.
    other = cli(*settings, *how, "--resume", "never", "--json").json
    assert other["parameters"] > result["parameters"]
