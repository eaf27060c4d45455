"""What launchers leave in the environment: used where it is whole, else set aside or refused."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from run_folder import assert_same_run

from cpprune.distributed.accelerate_settings import OVERRIDDEN, REFUSED, hidden, read_flag
from shards.errors import UserError
from shards.launcher import MPI, NAMES, Launch, of_several, only, process_rank, read_launch

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", **MEETING}
ALONE = [
    {"RANK": "3"},
    {"LOCAL_RANK": "0"},
    {"LOCAL_RANK": "2", "RANK": "2"},
    {"WORLD_SIZE": "1", "RANK": "0"},
    MEETING,
    {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    {"PMI_RANK": "2"},
    {"MV2_COMM_WORLD_LOCAL_RANK": "1"},
    {"PMI_SIZE": "1", "PMI_RANK": "5"},
]
QUIET = [{}, {"RANK": ""}, {"WORLD_SIZE": " "}, {"PMI_SIZE": "1", "PMI_RANK": "0"}]
REFUSED_ENVIRONMENTS = [
    *({name: value} for name in ("WORLD_SIZE", *(f[0] for f in MPI)) for value in ("4", "²", "x")),
    *({name: "-1"} for name in ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_SIZE")),
    {"WORLD_SIZE": "0"},
    {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
    *({name: "2", "PMI_RANK": "1"} for name in ("PMI_SIZE", "MV2_COMM_WORLD_SIZE")),
    *({**WHOLE, "MASTER_PORT": port} for port in ("abc", "0", "70000", "²", "1" * 5000)),
    *({**WHOLE, name: value} for name in ("RANK", "LOCAL_RANK") for value in ("2", "¹", "1.0")),
    {**WHOLE, "WORLD_SIZE": "9" * 5000},
]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*NAMES, *OVERRIDDEN, *REFUSED, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("environment", ALONE, ids=str)
def test_a_remnant_is_one_process_and_named(environment):
    launch = read_launch(environment)
    assert (launch.rank, launch.world_size, launch.variables) == (0, 1, {})
    for name, value in environment.items():
        assert f"{name}={value}" in launch.note
    assert "\n" not in launch.note


@pytest.mark.parametrize("environment", QUIET, ids=str)
def test_nothing_is_said_where_there_is_nothing(environment):
    assert read_launch(environment) == Launch()


@pytest.mark.parametrize("environment", REFUSED_ENVIRONMENTS, ids=lambda e: str(e)[:60])
def test_what_speaks_of_several_and_is_not_whole_is_refused(environment):
    with pytest.raises(UserError) as error:
        read_launch(environment)
    assert "\n" not in str(error.value)
    assert any(name in str(error.value) for name in environment)


def test_whole_sets_are_used():
    assert read_launch(WHOLE) == Launch(1, 1, 2, WHOLE)
    one = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", **MEETING}
    assert read_launch(one) == Launch(0, 0, 1, one)
    for size, rank, local in MPI:
        assert read_launch({size: "2", rank: "1", local: "1", **MEETING}) == Launch(1, 1, 2, WHOLE)
    # `mpirun torchrun`: each of MPI's processes starts a node's own.
    assert read_launch({**WHOLE, "OMPI_COMM_WORLD_SIZE": "4", "PMI_SIZE": "x"}).world_size == 2


def test_every_combination_has_one_of_three_ends():
    """No exception but a user's mistake, whatever is left of whom."""
    values = {
        "WORLD_SIZE": ("2",),
        "RANK": ("1", "x"),
        "LOCAL_RANK": ("1",),
        "PMI_SIZE": ("1", "3"),
    }
    values |= {"PMI_RANK": ("1",), "MASTER_ADDR": ("h",), "MASTER_PORT": ("1", "abc")}
    ends = set()
    for chosen in product(*((None, *options) for options in values.values())):
        environment = {n: v for n, v in zip(values, chosen, strict=True) if v is not None}
        try:
            launch = read_launch(environment)
        except UserError:
            ends.add("refused")
            continue
        ends.add("used" if launch.variables else "alone")
        assert launch.variables or launch.note or environment in ({}, {"PMI_SIZE": "1"})
    assert ends == {"refused", "used", "alone"}


def test_tasks_of_srun_are_told_that_they_are_alone():
    note = read_launch({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}).note
    assert "4 tasks" in note
    assert "torchrun" in note
    assert read_launch({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}).note == ""  # an sbatch script


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("PMI_SIZE", "9")
    with only(read_launch(WHOLE)):
        assert {name: os.environ[name] for name in NAMES if name in os.environ} == WHOLE
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == {
        "RANK": "3",
        "PMI_SIZE": "9",
    }
    assert (process_rank(), of_several()) == (0, False), "of what makes no sense"


# --- commands -----------------------------------------------------------------------------------------


def test_a_training_beside_remnants_is_whole(cli, scenes, tiny, tmp_path, monkeypatch):
    """It ends as one process alone: a report, and its result on standard output."""
    environment = {"RANK": "3", "LOCAL_RANK": "1", "PMI_RANK": "1", "MV2_COMM_WORLD_RANK": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = [*tiny, "--train.epochs", 1, "--data.train_fraction", 0.1]
    done = cli("train", *settings, "--data.path", scenes, "--run", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    assert done.json["parameters"] == 2_650
    assert (tmp_path / "run/report.html").exists()
    (line,) = [line for line in done.err.splitlines() if "set aside" in line]
    for name, value in environment.items():
        assert f"{name}={value}" in line


@pytest.mark.parametrize(
    "environment",
    [
        {"PMI_SIZE": "4"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
        {"MV2_COMM_WORLD_SIZE": "2"},
        {"WORLD_SIZE": "²"},
        {**WHOLE, "MASTER_PORT": "abc"},
    ],
    ids=str,
)
def test_a_training_in_a_broken_environment(
    refused, scenes, tiny, tmp_path, monkeypatch, environment
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    names = [next(n for n, v in environment.items() if v in ("4", "2", "²", "abc"))]
    command = ["train", *tiny, "--data.path", scenes, "--run", tmp_path / "run"]
    if "MASTER_PORT" in environment:
        names = ["MASTER_PORT"]
    refused(*command, names=names)
    assert not (tmp_path / "run").exists()


def test_other_commands_do_not_care(cli, scenes, tiny_run, monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "²")
    for command in (["info", tiny_run / "model"], ["shards", "info", scenes]):
        done = cli(*command)
        assert (done.status, done.err) == (0, "")


# --- Accelerate's configuration -----------------------------------------------------------------------


def test_the_run_alone_says_how_it_trains(cli, scenes, tiny, tmp_path, monkeypatch):
    """A default configuration's settings change nothing, and each is named."""
    settings = [*tiny, "--train.epochs", 1, "--data.train_fraction", 0.1, "--data.path", scenes]
    assert cli("train", *settings, "--run", tmp_path / "plain").status == 0
    asked = {
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_MIXED_PRECISION": "fp16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_GRADIENT_CLIPPING": "0.01",
        "ACCELERATE_TORCH_DEVICE": "meta",
    }
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_DEBUG_MODE", "perhaps")
    monkeypatch.setenv("FORK_LAUNCHED", "perhaps")
    done = cli("train", *settings, "--run", tmp_path / "run")
    assert done.status == 0, done.err
    (line,) = [line for line in done.err.splitlines() if "not taken" in line]
    for name, value in asked.items():
        assert f"{name}={value} ({OVERRIDDEN[name][0]} decides)" in line
    assert_same_run(tmp_path / "plain", tmp_path / "run")


@pytest.mark.parametrize("name", REFUSED)
def test_what_spreads_the_network_is_refused(refused, scenes, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "true")
    refused("train", "--data.path", scenes, "--run", tmp_path / "run", names=[name, "unset it"])
    monkeypatch.setenv(name, "perhaps")
    refused("train", "--data.path", scenes, "--run", tmp_path / "run", names=[name, "perhaps"])


def test_flags(monkeypatch):
    for text, expected in (("true", True), ("True", True), ("1", True), ("no", False), ("", False)):
        monkeypatch.setenv("ACCELERATE_USE_CPU", text)
        assert read_flag("ACCELERATE_USE_CPU") is expected


def test_threads_that_accelerate_cannot_read(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    with hidden():
        assert os.environ["OMP_NUM_THREADS"] == str(torch.get_num_threads())
    assert os.environ["OMP_NUM_THREADS"] == "4,2"


# --- several processes --------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_of_mpi(scenes, tiny, tmp_path, free_port):
    """With nothing but what `mpirun -x MASTER_ADDR -x MASTER_PORT` gives each."""
    environment = {n: v for n, v in os.environ.items() if n not in NAMES}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    settings = [*tiny, "--train.epochs", 1, "--data.train_fraction", 0.1, "--data.path", scenes]
    processes = []
    for rank in ("0", "1"):
        own = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": rank}
        own |= {"OMPI_COMM_WORLD_LOCAL_RANK": rank, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        command = [sys.executable, Path(__file__).parents[2] / "launch/train.py", *settings]
        command += ["--run", tmp_path / "run", "--json"]
        processes.append(
            subprocess.Popen(
                [*map(str, command)],
                env=environment | own,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 process(es) on cpu" in outputs[0][1]
    assert json.loads(outputs[0][0])["parameters"] == 2_650
    assert outputs[1][0] == ""
