"""What goes wrong on one of several processes: all end together, in time, and the one is named."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from run_folder import epochs_of, equal, metrics, tensors

from cpprune.cli.main import main
from cpprune.distributed import rendezvous
from cpprune.distributed.watchdog import Watchdog

REPOSITORY = Path(__file__).parents[2]
SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", "8"]
SETTINGS += ["--data.train_fraction", "0.25", "--optim.schedule", "constant"]


@pytest.fixture
def command(scenes, tmp_path):
    return ["train", *SETTINGS, "--data.path", str(scenes), "--run", str(tmp_path / "run")]


def main_with_nan_on_rank_1(arguments):
    """Run a command; in the sixth step, what the network of rank 1 sees is no number."""
    import cpprune.training.step

    augmented, calls = cpprune.training.step.augmented, 0

    def breaking(*words):
        nonlocal calls
        calls += 1
        x = augmented(*words)
        return x * torch.nan if calls == 6 and os.environ["RANK"] == "1" else x

    cpprune.training.step.augmented = breaking
    try:
        return main(arguments)
    finally:
        cpprune.training.step.augmented = augmented


@pytest.mark.parametrize("global_statistics", ["true", "false"])
def test_no_number_on_one_rank_is_skipped_on_all(two, command, tmp_path, global_statistics):
    words = [*command, "--train.epochs", "2", "--train.checkpoint_steps", "1"]
    words += ["--train.keep_checkpoints", "9", "--train.global_batch_norm", global_statistics]
    assert two.call(main_with_nan_on_rank_1, words, group=False) == [0, 0]
    run = tmp_path / "run"
    assert [line["batch"] for line in metrics(run) if line.get("event") == "skipped"] == [1]
    before, after = (
        tensors(run / f"checkpoints/step-0000000{n}/network.safetensors") for n in (5, 6)
    )
    if global_statistics == "true":
        assert equal(before, after)
    assert all(torch.isfinite(t).all() for t in after.values())
    assert len(epochs_of(run)) == 2


def main_with_other_weights_on_rank_1(arguments):
    """Run a command; in the third step, rank 1 takes another step than rank 0."""
    from cpprune.training.step import TrainingStep

    step, calls = TrainingStep.__call__, 0

    def drifting(self, *words):
        nonlocal calls
        calls += 1
        stepped = step(self, *words)
        if calls == 3 and os.environ["RANK"] == "1":
            with torch.no_grad():
                next(self.engine.model.network.parameters()).view(-1)[0].add_(1e-3)
        return stepped

    TrainingStep.__call__ = drifting
    try:
        return main(arguments)
    finally:
        TrainingStep.__call__ = step


def test_ranks_that_drift_apart_are_found_at_the_next_checkpoint(two, command, tmp_path):
    words = [*command, "--train.epochs", "2", "--train.checkpoint_steps", "2"]
    assert two.call(main_with_other_weights_on_rank_1, words, group=False) == [2, 2]
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    assert saved.name == "step-00000002"
    answers = two.cpprune(*words)
    assert "goes on from step-00000002" in answers[0]["err"]


def test_all_ranks_stop_together(two, command, tmp_path):
    """The file comes at any moment; ranks ask each other, so none waits for ever."""
    run = tmp_path / "run"

    def touch():
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        (run / "STOP").touch()

    thread = threading.Thread(target=touch)
    thread.start()
    answers = two.cpprune(*command, "--train.epochs", 500, "--json")
    thread.join()
    assert re.search(r"stopped by .*STOP at epoch \d+, batch \d+", answers[0]["err"])
    assert answers[1]["err"] == ""


# --- with a launcher ----------------------------------------------------------------------------------


def start(free_port, command, *more, **environment):
    """Start two processes with torchrun."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    words += ["--master_port", str(free_port()), *more, "--", "launch/train.py", *command[1:]]
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=REPOSITORY,
        env={**os.environ, **own},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks_of(process):
    """Return the processes of a launcher by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == process.pid:
                variables = (path.parent / "environ").read_bytes().split(b"\0")
                found |= {int(v[5:]): int(path.parent.name) for v in variables if v[:5] == b"RANK="}
        except OSError:
            continue
    return found


def wait_for(condition, process):
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("waited for five minutes")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named(free_port, command, tmp_path, rank):
    process = start(free_port, [*command, "--train.epochs", 10_000], CPPRUNE_TIMEOUT_SECONDS="20")
    try:
        wait_for((tmp_path / "run/checkpoints").exists, process)
        ranks = ranks_of(process)
        os.kill(ranks[rank], signal.SIGSTOP)
        wait_for(lambda: not Path(f"/proc/{ranks[1 - rank]}").exists(), process)
        os.kill(ranks[rank], signal.SIGKILL)
        _, err = process.communicate(timeout=600)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    (line,) = [line for line in err.splitlines() if line.startswith("cpprune: error")]
    assert f"rank {rank} does not run" in line
    assert f"(rank {1 - rank})" in line
    assert "goes on from the last checkpoint" in line


@pytest.mark.slow
def test_a_launcher_that_restarts_its_processes_goes_on(free_port, command, tmp_path):
    words = [*command, "--train.epochs", 6, "--train.checkpoint_steps", 1]
    process = start(free_port, words, "--max_restarts", 1)
    try:
        wait_for(lambda: len(list(tmp_path.glob("run/checkpoints/step-*"))) == 2, process)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        _, err = process.communicate(timeout=600)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert "goes on from step-" in err
    assert len(epochs_of(tmp_path / "run")) == 6
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_node_that_joins_later_takes_part(free_port, command, tmp_path):
    """torchrun's elastic --nnodes=1:2: the first node goes on with the second from where it was."""
    port = free_port()
    agent = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "1:2",
        "--nproc_per_node",
        "1",
    ]
    agent += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "one"]
    agent += ["--max_restarts", "3", "--", "launch/train.py", *command[1:], "--train.epochs", "60"]
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    own["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    settings = {"cwd": REPOSITORY, "env": {**os.environ, **own}, "text": True}
    settings |= {"stderr": subprocess.PIPE, "start_new_session": True}
    agents = [subprocess.Popen(agent, **settings)]
    try:
        wait_for((tmp_path / "run/checkpoints").exists, agents[0])
        agents.append(subprocess.Popen(agent, **settings))
        texts = [process.communicate(timeout=600)[1] for process in agents]
    finally:
        for process in agents:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stderr.close()
    assert [process.returncode for process in agents] == [0, 0], texts[0] + texts[1]
    told = "".join(texts)
    assert "stopped by SIGTERM" in told
    assert "goes on from step-" in told
    assert len(epochs_of(tmp_path / "run")) == 60
    assert [line["epoch"] for line in epochs_of(tmp_path / "run")] == list(range(60))


def test_from_python_a_hang_is_logged_and_ends_nothing(monkeypatch, caplog):
    monkeypatch.setattr(rendezvous, "watchdog_store", torch.distributed.HashStore)
    with Watchdog(0.1, ends_process=False) as watchdog:
        assert watchdog.thread is not None
        watchdog.thread.join(600)
        assert not watchdog.thread.is_alive()
    assert "no step for 0 s: rank 0 is the furthest behind" in caplog.text
