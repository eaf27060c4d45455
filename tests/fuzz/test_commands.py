"""Thousands of bad inputs for every command: each is refused in one line with status 2, or is valid.

What fails is printed with its number: `python tests/fuzz/run.py --only NUMBER` shows it at length.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = 60


@pytest.mark.slow
def test_bad_inputs_of_every_command():
    # CPPRUNE_FUZZ=10000 tries so many, however long that takes.
    count = os.environ.get("CPPRUNE_FUZZ")
    few = ["--count", "10000", "--seconds", str(SECONDS)]
    command = [sys.executable, HERE / "run.py", *(["--count", count] if count else few)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_an_input_is_the_same_again(tmp_path):
    code = "from fuzz_trial import Trials; from pathlib import Path; import sys; "
    code += "t = Trials(Path(sys.argv[1]), Path(sys.argv[1]), 7); "
    code += "print([str(t.make(n)) for n in range(300) if t.line(n).light])"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            capture_output=True,
            text=True,
            check=True,
            cwd=HERE,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(HERE.parents[1])},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert "shards build" in runs[0]
