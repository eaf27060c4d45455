"""Sweeps with real trainings: by wandb's agent, and by ours over two processes, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from run_folder import assert_same_run, epochs_of

REPOSITORY = Path(__file__).parents[2]
TINY = ["--model.widths=[6, 8, 10]", "--train.batch_size=16", "--train.precision=no"]
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
SECONDS = 600

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [1, 2])
def test_wandbs_agent_runs_a_trial(by_wandb, scenes, tmp_path, processes):
    tree = yaml.safe_load((REPOSITORY / "configs/sweeps/schedule.yaml").read_text())
    if processes == 2:
        at = tree["command"].index("--config_file=launch/accelerate/single_gpu.yaml")
        several = ["--config_file=launch/accelerate/cpu.yaml", "--main_process_port=0"]
        tree["command"][at : at + 1] = several
    at = tree["command"].index("${args}")
    tree["command"][at:at] = [
        *(*TINY, f"--data.path={scenes}", "--data.train_fraction=0.2"),
        *("--train.epochs=3", f"--run={tmp_path}/$WANDB_RUN_ID"),
    ]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    arguments = {"prune.steps": 2, "prune.start_epoch": 1, "prune.every_epochs": 1}
    arguments |= {
        "prune.ramp": "cubic",
        "prune.learning_rate": "rewind",
        "prune.carry_state": False,
    }
    asked = {"file": str(tmp_path / "sweep.yaml"), "arguments": arguments, "id": "r4nd0m"}
    (answer,) = by_wandb({**asked, "start": True}, **ENVIRONMENT)
    assert answer["status"] == 0
    run = tmp_path / "r4nd0m"
    assert json.loads((run / "tracking.json").read_text())["problem"] is None
    assert len(list(run.glob("wandb/offline-run-*/run-*.wandb"))) == 1, "from rank 0 alone"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["prune"].items() >= {k.split(".")[1]: v for k, v in arguments.items()}.items()
    assert json.loads((run / "result.json").read_text())["parameters"] < 2_650


def processes_of(run):
    """Return the numbers of the processes whose command names this run."""
    numbers = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"--run={run}" in (path / "cmdline").read_bytes().decode().split("\0"):
                numbers.append(int(path.name))
    return numbers


def test_two_processes_killed_and_resumed_end_as_if_they_were_not(tiny_run, scenes, tmp_path):
    """Two trials that differ in what changes nothing; the first is killed on its way."""
    tree = {
        "method": "grid",
        "metric": {"name": "val_log_loss", "goal": "minimize"},
        "parameters": {"train.max_skipped": {"values": [10, 11]}, "prune.ratio": {"value": 0.3}},
        "program": "launch/prune.py",
        "command": [
            *("${env}", "accelerate", "launch", "--config_file=launch/accelerate/cpu.yaml"),
            *("--main_process_port=0", "${program}", *TINY, "${args}"),
        ],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    words = [
        sys.executable,
        "-m",
        "cpprune",
        "sweep",
        tmp_path / "sweep.yaml",
        "--out",
        tmp_path / "out",
    ]
    words += [
        "--json",
        "--",
        "--data.path",
        scenes,
        "--train.epochs=4",
        "--init",
        tiny_run / "model",
    ]
    command = [str(word) for word in words if word != TINY[0]]

    def start():
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first, other = tmp_path / "out/trial-0000", tmp_path / "out/trial-0001"
    with start() as sweep:
        end = time.monotonic() + SECONDS
        while not (first / "checkpoints/step-00000008").exists():
            assert time.monotonic() < end
            assert sweep.poll() is None, sweep.communicate()
            time.sleep(0.05)
        sweep.kill()
        numbers = processes_of(first)
        assert len(numbers) >= 3, "the launcher and two processes"
        for number in numbers:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
    assert not (first / "result.json").exists()
    with start() as sweep:
        out, err = sweep.communicate(timeout=SECONDS)
    assert sweep.returncode == 0, err
    assert err.splitlines()[0].startswith("trial-0000: resumes: ")
    log = (tmp_path / "out/trial-0000.log").read_text()
    assert "2 process(es) on cpu" in log
    assert "goes on from step-" in log
    assert_same_run(first, other)
    found = json.loads(out)
    kept = [line for line in epochs_of(first) if line["best"]][-1]
    assert [trial["value"] for trial in found["trials"]] == [kept["val_log_loss"]] * 2
    assert {trial["state"] for trial in found["trials"]} == {"done"}
