"""What a terminal shows while a run goes on, what it says at its end, and that neither waits."""

import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cpprune
from cpprune.config import RunConfig
from cpprune.pruning.config import PruneConfig
from cpprune.runs import progress as terminal
from cpprune.runs.records import RunResult, Validation

SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", "8", "--train.epochs", "2"]
SETTINGS += ["--optim.schedule", "constant"]


def on_a_terminal(columns: int, *arguments: object) -> str:
    """Run a command whose standard error is a terminal, and return what came there."""
    own, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "cpprune", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": its}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        os.close(its)
        seen = b""
        while True:
            try:
                part = os.read(own, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not part:
                break
            seen += part
        assert process.wait(600) == 0, seen.decode()
    os.close(own)
    return seen.decode()


@pytest.mark.slow
def test_the_line_of_an_epoch(scenes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    raw = on_a_terminal(130, "train", *SETTINGS, "--data.path", scenes, "--run", run)
    frames = [line.strip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*\w", "", raw))]
    live = [
        re.fullmatch(
            r"epoch (\d)/2 \S+ batch (\d+)/16 ([\d,]+) clips/s (\S+) loss (\S+)"
            r"( val macro accuracy (0\.\d{4}))?",
            line,
        )
        for line in frames
        if " batch " in line
    ]
    assert live
    assert all(live), frames
    found = [match for match in live if match]
    assert {match[1] for match in found} == {"1", "2"}
    assert max(int(match[2]) for match in found) == 16
    lines = (run / "metrics.jsonl").read_text().splitlines()
    accuracy = json.loads(lines[0])["val_macro_accuracy"]
    assert {match[7] for match in found if match[1] == "1"} == {None}
    assert {match[7] for match in found if match[1] == "2"} == {f"{accuracy:.4f}"}
    # The lines that stay are those of a run without a terminal.
    stay = [line for line in frames if line and " batch " not in line]
    assert [line[:9] for line in stay[1:4]] == ["epoch 1/2", "epoch 2/2", "done: bes"]


def closing(
    prune: PruneConfig,
    tmp_path: Path,
    parameters: int,
    family: str = "cp_resnet",
    operations: int = 2_010_000,
) -> str:
    config = RunConfig(run=str(tmp_path), prune=prune)
    network = cpprune.build_model("cp_resnet", widths=[4, 4, 4])
    model: Any = SimpleNamespace(network=network, input_shape=(1, 256, 44), family=family)
    val = Validation(macro_accuracy=0.51, accuracy=0.52, log_loss=1.3, clips=2200)
    result = RunResult(
        run="R",
        epoch=3,
        model="M",
        parameters=parameters,
        macs=2_000_000,
        operations=operations,
        val=val,
        fingerprint="F",
    )
    return "\n".join(terminal.closing_lines(config, result, model))


def test_the_end_of_a_run(tmp_path: Path) -> None:
    said = closing(PruneConfig(), tmp_path, 47_028)
    assert said.startswith("done: best model of epoch 4 in M: 47,028 parameters, val macro ")
    for part in ("log loss 1.3000 over 2,200 clips", "2,000,000 MACs", f"{tmp_path}/metrics.jsonl"):
        assert part in said
    assert "budget" not in said
    assert "--trust" not in said
    own = closing(PruneConfig(), tmp_path, 47_028, "my.nets:tiny")
    assert " --trust my.nets\n" in own
    assert "operations" not in said
    more = closing(PruneConfig(), tmp_path, 47_028, operations=5_000_000)
    assert "and 2,000,000 MACs (5,000,000 operations)\n" in more
    (tmp_path / "tracking.json").write_text('{"look": "tensorboard --logdir there"}')
    assert "tensorboard --logdir there" in closing(PruneConfig(), tmp_path, 47_028)


@pytest.mark.parametrize(
    ("budget", "verdicts"),
    [
        ("params<=47028", ["params<=47028 is met"]),
        ("params<=47027", ["params<=47027 is NOT met"]),
        ("bytes<=94055@fp16,macs<=2e6", ["bytes<=94055@fp16 is NOT met", "macs<=2e6 is met"]),
        ("macs<=1999999", ["macs<=1999999 is NOT met"]),
        ("operations<=2010000", ["operations<=2010000 is met"]),
        ("operations<=2009999", ["operations<=2009999 is NOT met"]),
        ("exported<=4999@int8", ["exported<=4999@int8 is NOT met"]),
        ("exported<=5000@int8,macs<=1", ["exported<=5000@int8 is met", "macs<=1 is NOT met"]),
        ("latency<=0.001us", ["latency<=0.001us is NOT met (", " ms now)"]),
        ("latency<=1000s", ["latency<=1000s is met ("]),
    ],
)
def test_whether_a_budget_is_met(
    budget: str, verdicts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cpprune.pruning.measured.exported_bytes", lambda network, shape, precision: 5000
    )
    said = closing(PruneConfig(budget=budget), tmp_path, 47_028)
    assert all(verdict in said for verdict in verdicts), said


class OnDevice:
    """A number on a device; says how often it was read."""

    def __init__(self, device: str) -> None:
        self.device = SimpleNamespace(type=device)
        self.value, self.reads = 0.0, 0

    def item(self) -> float:
        self.reads += 1
        return self.value


@pytest.mark.parametrize(("device", "most"), [("cuda", 1 + 1000 // 50), ("cpu", 1 + 1000)])
def test_the_loss_is_the_mean_of_the_latest_and_seldom_read(
    device: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_READINGS", 0.0)
    loss_sum: Any = OnDevice(device)
    loss_sum.value = 1e6  # of steps before
    running = terminal.RunningLoss(loss_sum)
    for step in range(1000):
        loss_sum.value += 4 * (2.0 if step < 950 else 0.5)
        text = running.after(4)
    assert text == "0.5000"
    assert loss_sum.reads == most


def test_the_loss_is_read_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock.now)
    loss_sum: Any = OnDevice("cpu")
    running = terminal.RunningLoss(loss_sum)
    for _ in range(1000):
        clock.now += 0.01
        loss_sum.value += math.pi
        text = running.after(1)
    assert text == "3.1416"
    assert 10 / 0.26 - 1 <= loss_sum.reads - 1 <= 10 / 0.25
