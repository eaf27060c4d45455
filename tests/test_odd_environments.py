"""Variables of the environment with odd values, and none where there usually is one."""

import json
import os
import pwd
import subprocess
import sys

import pytest

ODD = {
    "CUDA_VISIBLE_DEVICES": "abc",
    "MKL_NUM_THREADS": "x",
    "OMP_NUM_THREADS": "1,1",
    "TMPDIR": "/nonexistent",
    "HOME": "/proc/1",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONIOENCODING": "ascii",
    "COLUMNS": "abc",
    "LINES": "x",
    "TERM": "dumb",
    "NO_COLOR": "1",
    "SLURM_MEM_PER_NODE": "4G",
    "SLURM_CPUS_ON_NODE": "²",
}
if not sys.prefix.isascii():
    del ODD["PYTHONUTF8"]  # torch itself cannot be imported from there


@pytest.mark.slow
def test_a_training_among_odd_values(scenes, tiny, tmp_path):
    settings = [*tiny, "--train.epochs", 1, "--data.train_fraction", 0.1, "--data.path", scenes]
    command = [sys.executable, "-m", "cpprune", "train", *settings, "--json", "--run"]
    done = subprocess.run(
        [*map(str, command), tmp_path / "run"],
        env=os.environ | ODD,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == 2_650
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("value", ["²", "0", "-1", "1.5", "9" * 5000, "99999999"])
def test_a_timeout_that_is_no_time(refused, scenes, tiny, tmp_path, monkeypatch, value):
    monkeypatch.setenv("CPPRUNE_TIMEOUT_SECONDS", value)
    names = ["CPPRUNE_TIMEOUT_SECONDS", "from 1 to"]
    refused("train", *tiny, "--data.path", scenes, "--run", tmp_path / "run", names=names)
    assert not (tmp_path / "run").exists()


def test_a_cache_that_is_a_file(refused, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("mine")
    monkeypatch.setenv("CPPRUNE_CACHE", str(tmp_path / "cache"))
    refused(
        "shards", "info", "http://127.0.0.1:9/data", names=[tmp_path / "cache", "CPPRUNE_CACHE"]
    )
    assert (tmp_path / "cache").read_text() == "mine"


def test_a_user_without_a_home(refused, monkeypatch):
    """As in a container that runs under a number that /etc/passwd does not have."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("CPPRUNE_CACHE", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    refused("shards", "info", "http://127.0.0.1:9/data", names=["HOME", "CPPRUNE_CACHE"])
