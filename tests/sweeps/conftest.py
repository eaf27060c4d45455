"""Sweeps of trainings that take no time, and what wandb makes of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SWEEP = {
    "method": "grid",
    "metric": {"name": "val_log_loss", "goal": "minimize"},
    "parameters": {"x": {"values": [1, 2, 3, 4]}},
    "program": str(HERE / "quick_run.py"),
    "command": ["${interpreter}", "${program}", "${args}"],
}


@pytest.fixture
def sweep_file(tmp_path):
    """Writes a sweep of quick runs with other keys than these; returns its path."""

    def write(**keys):
        path = tmp_path / "sweep.yaml"
        tree = {k: v for k, v in {**SWEEP, **keys}.items() if v is not None}
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def by_wandb(tmp_path_factory):
    """Asks by_wandb.py."""

    def ask(*asked, **variables):
        folder = tmp_path_factory.mktemp("wandb")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, HERE / "by_wandb.py"],
            input=json.dumps(asked),
            env={**os.environ, "WANDB_DIR": str(folder), "PATH": path, **variables},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return ask
