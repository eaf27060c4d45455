"""The project on a simulated GPU: what a GPU would refuse, wait for, or be asked to do too often.

It is no GPU: nothing here measures anything. See build.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import build
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
pytestmark = pytest.mark.slow

# Kernels of a step of the network below, MixStyle on; beside a graph, those that are not part of it.
KERNELS = {"off": 299, "capture": 5}
OF_TWO = {"kernels": 400, "collectives": 34}  # over two processes, collectives among the kernels
SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", "8", "--train.precision", "bf16"]
SETTINGS += ["--augment.mixstyle_p", "1", "--data.train_fraction", "0.5"]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
LAUNCHER += ["--master_port"]
TWO = {"CUDA_VISIBLE_DEVICES": "0,1", "SIMULATED_GPUS": "2"}
COUNT = [sys.executable, str(HERE / "count_step.py")]

# Mistakes to be caught. Each is put in before the step is counted.
PLANTS = {
    "a host tensor": "forward = Engine.forward\n"
    "Engine.forward = lambda self, x: forward(self, x + torch.zeros(x.shape[-1]))",
    "item": "backward = Engine.backward\n"
    "Engine.backward = lambda self, loss: (loss.item(), backward(self, loss))[1]",
    "a kernel a layer": "forward = torch.nn.Conv2d.forward\n"
    "torch.nn.Conv2d.forward = lambda self, x: forward(self, x) * 1",
}


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The simulated CUDA runtime."""
    if reason := build.why_not():
        if os.environ.get("CI"):
            pytest.fail(f"the simulated GPU {reason}")
        pytest.skip(f"the simulated GPU {reason}")
    return build.build(tmp_path_factory.mktemp("simulated") / "gpu")


@pytest.fixture
def run(library):
    """Runs a command where the simulated GPU is seen; returns the completed process."""

    def call(*command, **more):
        environment = {**os.environ, **build.environment(library), **more}
        done = subprocess.run(
            list(map(str, command)), env=environment, cwd=ROOT, capture_output=True, text=True
        )
        said = [line for line in done.stderr.splitlines() if line.startswith("simulated GPU: ")]
        assert not said, said[0]
        if "driver version is insufficient" in done.stdout + done.stderr:
            pytest.fail("torch calls a function of CUDA's runtime that cudart.c lacks: add it")
        return done

    return call


@pytest.fixture
def count(run, scenes, tmp_path):
    """Counts a step under a way of compiling, with a mistake put in; returns the process."""

    def call(compiled, plant=""):
        data = ["--data.path", scenes, "--run", tmp_path / "run", "--train.compile", compiled]
        if not plant:
            return run(*COUNT, 4, *SETTINGS, *data)
        program = (
            "import runpy, sys, torch\nfrom cpprune.training.engine import Engine\n"
            f"{plant}\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        )
        return run(sys.executable, "-c", program, COUNT[1], 4, *SETTINGS, *data)

    return call


def found(done):
    """The step that a process has counted."""
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("compiled", ["off", "capture"])
def test_a_step_waits_for_nothing_and_launches_no_more_kernels(count, compiled):
    step = found(count(compiled))
    assert step["waits"] == []
    assert step["pageable"] == []
    assert 0 < step["kernels"] <= KERNELS[compiled]


def test_two_processes_launch_no_more_kernels_and_collectives(run, free_port, scenes, tmp_path):
    data = ["--data.path", scenes, "--run", tmp_path / "run"]
    step = found(run(*LAUNCHER, free_port(), "--", COUNT[1], 2, *SETTINGS, *data, **TWO))
    assert step["waits"] == []
    assert step["pageable"] == []
    collectives = sum(operator["name"].startswith("c10d.") for operator in step["operators"])
    assert 2 < collectives <= OF_TWO["collectives"]
    assert collectives < step["kernels"] <= OF_TWO["kernels"]


def test_a_tensor_of_the_host_is_refused(count):
    done = count("off", PLANTS["a host tensor"])
    assert done.returncode != 0
    assert "found at least two devices" in done.stderr


def test_a_wait_is_named(count):
    step = found(count("off", PLANTS["item"]))
    assert any(wait.startswith("_local_scalar_dense: ") for wait in step["waits"]), step["waits"]
    done = count("capture", PLANTS["item"])
    assert done.returncode != 0
    assert "operation not permitted when stream is capturing" in done.stderr


def test_one_more_kernel_a_layer_is_counted(count):
    plain, more = (found(count("off", PLANTS[p] if p else "")) for p in ("", "a kernel a layer"))
    convolutions = sum(o["name"] == "cudnn_convolution" for o in plain["operators"])
    assert convolutions > 4
    assert more["kernels"] >= plain["kernels"] + convolutions
    assert more["kernels"] > KERNELS["off"]


def test_batch_norm_over_processes(run, free_port):
    """Right in float64's eyes on two ranks, empty ones and captured steps too; see the script."""
    done = run(*LAUNCHER, free_port(), "--", HERE / "normalise_on_ranks.py", **TWO)
    assert found(done) == {
        name: {"kernels": kernels, "collectives": 1, "waits": []}
        for name, kernels in {"forward": 7, "backward": 5}.items()
    }


@pytest.mark.parametrize(
    "which",
    [
        "front_end or that_of_the_cpu or torchs_own",
        "bit_by_bit and capture-sgd",
        "compiling and graph and bf16",
        "a_stopped_run and capture and device",
        "asks_the_host or cached or commands",
    ],
)
def test_the_tests_for_a_gpu_pass(run, which):
    pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-m", "gpu"]
    done = run(*pytest_, "tests/gpu", "-k", which)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_too_little_memory_is_one_line(run, scenes, tmp_path):
    done = run(
        *(
            sys.executable,
            "-m",
            "cpprune",
            "train",
            "--data.path",
            scenes,
            "--run",
            tmp_path / "run",
        ),
        *("--train.epochs", 1, "--train.batch_size", 128),
        SIMULATED_GPU_BYTES=str(64 << 20),
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cpprune: error: ")
    assert "memory" in last
    assert "Traceback" not in done.stderr


def test_nobody_takes_it_for_a_gpu(run):
    done = run(sys.executable, "-m", "cpprune", "doctor")
    assert "simulated GPU (computed by the CPU)" in done.stdout + done.stderr
    limits = [sys.executable, "-c", "import torch, limits; limits.report(torch.device('cuda'))"]
    path = os.pathsep.join([build.environment(Path("x"))["PYTHONPATH"], str(ROOT / "benchmarks")])
    done = run(*limits, PYTHONPATH=path)
    assert done.returncode != 0
    assert "simulated GPU has no speed" in done.stderr
