"""A few rounds of benchmarks/kills.py: killed at random moments, the run ends with the same bits."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_end_alike(processes):
    words = [sys.executable, "benchmarks/kills.py", "--rounds", "3"]
    done = subprocess.run(
        [*words, "--processes", str(processes)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 rounds equal" in done.stdout
