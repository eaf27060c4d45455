"""`cpprune doctor`: machines that lack something, and packages that are broken in many ways."""

import shutil
import time
from importlib.metadata import version

import pytest
import torch

from cpprune.cli import checks
from cpprune.cli.checks import Finding
from cpprune.cli.import_probe import Answer, Gpu, Gpus


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Puts modules of our own making before the real ones."""

    def make(**sources):
        for name, source in sources.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return make


FINE = "print('hello')"
TORCH = """
class version:
    cuda = None
class cuda:
    device_count = staticmethod(lambda: 0)
"""


@pytest.mark.slow
def test_this_machine(cli):
    outcome = cli("doctor", "--json")
    found = outcome.json
    assert outcome.status == (1 if found["problems"] else 0)
    assert found["packages"]["torch"] == version("torch")
    assert found["cuda"] == torch.version.cuda
    assert found["gpus"] == [
        torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
    ]
    assert found["extras"]["deepspeed"] is True
    about = {finding["about"] for finding in found["findings"]}
    assert {"Python", "CPU", "memory", "packages", "launcher", "SLURM"} <= about


def test_broken_packages_give_a_line_each(cli, broken):
    """One raises, one kills Python, one is no code at all, one exits, one prints."""
    broken(
        torch=TORCH,
        torchaudio="raise OSError('libc10_cuda.so: cannot open shared object file\\nmore')",
        torch_pruning="import os; os.kill(os.getpid(), 11)",
        soundfile="raise SystemExit(0)",
        accelerate=FINE,
        torchinfo=FINE,
        pyarrow="1 +",
    )
    outcome = cli("doctor")
    assert outcome.status == 1
    assert "Traceback" not in outcome.out + outcome.err
    assert "hello" not in outcome.out
    found = [line for line in outcome.out.splitlines() if line.startswith("problem")]
    by_name = {line.split()[1].rstrip(":"): line for line in found}
    assert by_name.keys() == {"torchaudio", "torch_pruning", "soundfile", "pyarrow"}
    assert "(OSError: libc10_cuda.so: cannot open shared object file)" in by_name["torchaudio"]
    assert "both from the same index" in by_name["torchaudio"]
    assert "ends Python (status -11)" in by_name["torch_pruning"]
    assert "SystemExit" in by_name["soundfile"]
    assert "SyntaxError" in by_name["pyarrow"]
    assert "4 problem(s)" in outcome.out.splitlines()[-1]


def test_a_broken_torch_is_one_problem(cli, broken):
    others = dict.fromkeys(("torchaudio", "torch_pruning", "accelerate", "torchinfo"), FINE)
    broken(torch="raise ImportError('libcudart.so.13: no such file')", **others)
    outcome = cli("doctor", "--json")
    assert outcome.status == 1
    assert len(outcome.json["problems"]) == 1
    assert outcome.json["problems"][0].startswith(
        "torch: cannot be imported (ImportError: libcudart"
    )


def test_broken_extras_are_warnings(cli, broken):
    names = ("torchaudio", "torch_pruning", "accelerate", "torchinfo", "deepspeed", "transformers")
    broken(
        torch=TORCH,
        wandb="raise RuntimeError()",
        matplotlib=FINE,
        optuna=FINE,
        nvidia="",
        scipy=FINE,
        tensorboard=FINE,
        **dict.fromkeys(names, FINE),
    )
    found = cli("doctor", "--all", "--json").json
    assert found["problems"] == []
    [line] = [line for line in found["warnings"] if line.startswith("wandb")]
    assert "(RuntimeError: no reason given); pip install --force-reinstall wandb" in line


def test_an_import_that_hangs(broken, monkeypatch):
    monkeypatch.setattr(checks, "IMPORT_SECONDS", 1)
    broken(sleepy="import time; time.sleep(60)", awake=FINE)
    begin = time.monotonic()
    answers = checks.probe(["awake", "sleepy"])
    assert time.monotonic() - begin < 20
    assert answers["awake"].error is None
    assert answers["sleepy"].error == "is not done after 1 s"


def test_versions(monkeypatch):
    there = {"torch": "2.15.0", "soxr": None, "rich": "15.0"}
    monkeypatch.setattr(checks, "installed", there.get)
    findings = checks.check_versions({"torch": ">=2.11,<2.15", "soxr": ">=1.0", "rich": ">=14"})
    assert [str(finding) for finding in findings] == [
        "packages: rich 15.0",
        "torch: 2.15.0 is installed, >=2.11,<2.15 is needed; pip install 'torch>=2.11,<2.15'",
        "soxr: is not installed; pip install 'soxr>=1.0'",
    ]
    assert [finding.state for finding in findings] == ["ok", "problem", "problem"]


def test_the_needs_are_those_of_the_project():
    needed = checks.requirements()
    assert set(needed) >= {"torch", "torchaudio", "torch-pruning", "accelerate", "soundfile"}
    assert "wandb" not in needed
    assert list(checks.requirements("wandb")) == ["wandb"]


GPU = {"name": "H100", "memory_bytes": 80 * 2**30, "capability": [9, 0], "error": None}


def answer(gpus=(), cuda="13.0", reason=None):
    return Answer("gpus", None, Gpus(cuda, [Gpu(**gpu) for gpu in gpus], reason))


@pytest.mark.parametrize(
    ("given", "driver", "environment", "state", "says"),
    [
        (answer(), None, {}, "ok", "none; training runs on the CPU"),
        (answer([GPU]), "nvidia-smi", {}, "ok", "H100, 80 GiB, compute capability 9.0"),
        (
            answer([GPU | {"capability": [7, 0]}]),
            "x",
            {},
            "warning",
            "no bf16; use --train.precision",
        ),
        (
            answer([GPU | {"error": "no kernel image"}]),
            "x",
            {},
            "problem",
            "fails (no kernel image)",
        ),
        (answer(cuda=None), "x", {}, "problem", "torch is built for CPUs"),
        (answer(reason="driver too old"), "x", {}, "problem", "(driver too old); nvidia-smi must"),
        (
            answer(),
            "x",
            {"CUDA_VISIBLE_DEVICES": ""},
            "warning",
            "hidden by CUDA_VISIBLE_DEVICES=''",
        ),
        (Answer("gpus", "AssertionError: x"), "x", {}, "problem", "cannot be listed"),
    ],
)
def test_gpus(monkeypatch, given, driver, environment, state, says):
    monkeypatch.setattr(shutil, "which", lambda tool: driver)
    [finding] = checks.check_gpus(given, environment)
    assert finding.state == state
    assert says in str(finding)


@pytest.mark.parametrize(
    ("environment", "state", "says"),
    [
        ({}, "ok", "one process"),
        ({"WORLD_SIZE": "2"}, "problem", "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR"),
        ({"RANK": "x"}, "problem", "RANK='x' in the environment"),
        ({"WORLD_SIZE": "0"}, "problem", "WORLD_SIZE=0"),
        ({"RANK": "3"}, "warning", "RANK=3"),
        ({"ACCELERATE_USE_CPU": "true"}, "ok", "ACCELERATE_USE_CPU=true"),
    ],
)
def test_launcher(environment, state, says):
    [finding] = checks.check_launcher(environment)
    assert finding.state == state
    assert says in str(finding)
    rest = {"LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    [finding] = checks.check_launcher({"WORLD_SIZE": "2", "RANK": "1", **rest})
    assert finding.state == "ok"
    [finding] = checks.check_launcher({"WORLD_SIZE": "2", "RANK": "2", **rest})
    assert finding.state == "problem"


def test_slurm(tmp_path, monkeypatch):
    def tools(sinfo):
        for name, text in (("sbatch", ""), ("sinfo", sinfo)):
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        [finding] = checks.check_slurm({})
        return finding

    assert tools("echo gpu 4 x") == Finding("ok", "SLURM", "gpu 4 x")
    refused = tools("echo no controller >&2; exit 1")
    assert (refused.state, refused.text) == ("warning", "sinfo does not answer (no controller)")
    monkeypatch.setattr(checks, "SLURM_SECONDS", 0.2)
    assert "timed out" in tools("exec sleep 20").text
    assert "in job 7 on n1" in str(
        checks.check_slurm({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"})
    )
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert checks.check_slurm({}) == [Finding("ok", "SLURM", "not on this machine")]


def test_little_room(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100 << 20))
    monkeypatch.setattr(checks, "available_memory", lambda: 1000)
    monkeypatch.setattr(checks.Path, "read_text", lambda path: "150000 100000\n")
    monkeypatch.setattr(checks.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    found = {finding.about: finding for finding in checks.check_machine()}
    assert found["CPU"].text == "1.5 cores"
    assert found["memory"].state == "warning"
    assert found["free disk here"] == Finding("problem", "free disk here", "0.1 GiB", "make room")
    assert found["shared memory"].state == "warning"


def test_compilers(monkeypatch):
    monkeypatch.setattr(checks, "_has", lambda tool: tool == "ninja")
    [finding] = checks.check_compilers()
    assert finding.state == "warning"
    assert "no g++; apt install g++" in str(finding)


def test_what_lies_around_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "soxr.py").write_text("raise SystemExit('read from the current folder')")
    monkeypatch.chdir(tmp_path)
    assert checks.probe(["soxr"]) == {"soxr": Answer("soxr", None)}
    # Nor what lies beside the script.
    assert "ModuleNotFoundError" in checks.probe(["import_probe"])["import_probe"].error
