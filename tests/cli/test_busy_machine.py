"""Training beside other processes: how OpenMP's threads wait."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from marks import slow

REPOSITORY = Path(__file__).parents[2]


def _runtime_says(words, **environment):
    """Return the settings that the OpenMP runtime prints of itself when torch is loaded."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", words],
        env={**inherited, "OMP_DISPLAY_ENV": "verbose", **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(re.findall(r"(\w+) = '([^']*)'", done.stderr))


@pytest.mark.parametrize(
    "command", [slow(["info", "--config", "configs/small.yaml"]), ["train", "--run", ""]]
)
def test_waiting_threads_sleep_whatever_is_started(command):
    said = _runtime_says(f"from cpprune.cli.main import run; import sys; run({command!r})")
    assert said["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "expected"),
    [({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_what_the_user_says_stands(own, expected):
    command = ["info", "--config", "configs/small.yaml"]
    said = _runtime_says(f"from cpprune.cli.main import run; run({command!r})", **own)
    assert said["GOMP_SPINCOUNT"] == expected
