"""Sweeps as processes: several at once, killed, interrupted, with trials that fail or end early."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from marks import slow

SECONDS = 600


@pytest.fixture
def start(sweep_file, tmp_path):
    """Starts `cpprune sweep` on the folder `out`; all end with the test."""
    running = []

    def begin(*arguments, **keys):
        words = [sys.executable, "-m", "cpprune", "sweep", sweep_file(**keys)]
        running.append(
            subprocess.Popen(
                [*map(str, [*words, "--out", tmp_path / "out", *arguments])],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )
        )
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()
    for path in tmp_path.glob("out/trial-*/started"):
        for line in path.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)


def until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def starts(run):
    return [int(line) for line in (run / "started").read_text().split()]


def epochs(run):
    path = run / "metrics.jsonl"
    return (
        [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )


def ended(process, status=0):
    """Wait for a process; return its standard output and its lines on standard error."""
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == status, err
    return out, err.splitlines()


@pytest.mark.slow
def test_two_processes_share_the_trials(start, tmp_path):
    parameters = {"x": {"values": [1, 2, 3, 4, 5]}, "y": {"values": [True, False]}}
    keys = {"parameters": parameters}
    both = [start("--json", "--", "--pause=0.05", **keys) for _ in range(2)]
    told = [ended(process) for process in both]
    begun = [[line for line in lines if " begins: " in line] for _, lines in told]
    assert min(map(len, begun)) > 0, "both have worked"
    runs = sorted((tmp_path / "out").glob("trial-????"))
    assert [len(starts(run)) for run in runs] == [1] * 10
    assert all(epochs(run) == [0, 1, 2] for run in runs)
    found = max((json.loads(out) for out, _ in told), key=lambda found: len(found["trials"]))
    last, lines = ended(start("--json", "--", "--pause=0.05", **keys))
    assert [line for line in lines if "begins" in line or "resumes" in line] == []
    found = json.loads(last)
    assert {trial["state"] for trial in found["trials"]} == {"done"}
    pairs = {(trial["arguments"]["x"], trial["arguments"]["y"]) for trial in found["trials"]}
    assert pairs == {(x, y) for x in (1, 2, 3, 4, 5) for y in (True, False)}
    assert found["best"]["arguments"]["x"] == 3
    assert found["best"]["value"] == pytest.approx(1 / 3)
    rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert [float(row["val_log_loss"]) for row in rows] == [t["value"] for t in found["trials"]]
    assert rows[0]["--x"] == "3"
    assert (tmp_path / "out/sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("whom", [slow("the sweep"), "all of it"])
def test_killed_and_taken_up_again(start, tmp_path, whom):
    run, other = tmp_path / "out/trial-0000", tmp_path / "out/trial-0001"
    arguments = ("--trials", 2, "--", "--pause=0.1", "--epochs=6")
    first = start(*arguments)
    until(lambda: len(epochs(run)) > 1)
    first.kill()
    (orphan,) = starts(run)
    os.kill(orphan, signal.SIGKILL if whom == "all of it" else signal.SIGSTOP)
    second = start(*arguments)
    if whom == "the sweep":
        until((other / "started").exists)
        assert len(starts(run)) == 1, "what an orphan still trains is left to it"
        os.kill(orphan, signal.SIGCONT)
    _, lines = ended(second)
    order = [line.rpartition(": ")[0] for line in lines if "begins" in line or "resumes" in line]
    expected = ["trial-0000: resumes", "trial-0001: begins"]
    assert order == (expected if whom == "all of it" else expected[::-1])
    assert epochs(run) == list(range(6)), "no epoch is lost, none is trained by two"
    assert len(starts(run)) == 2


@pytest.mark.parametrize("number", [slow(signal.SIGINT), signal.SIGTERM])
def test_interrupted(start, tmp_path, number):
    run = tmp_path / "out/trial-0000"
    arguments = ("--trials", 1, "--", "--pause=0.1", "--epochs=8")
    first = start(*arguments)
    until(lambda: len(epochs(run)) > 1)
    first.send_signal(number)
    out, lines = ended(first, 128 + number)
    before = len(epochs(run))
    assert before < 8
    assert "stopped" in out
    assert lines[-1].startswith(f"stopped by {number.name}; everything is saved")
    assert not (run / "STOP").exists()
    out, lines = ended(start(*arguments))
    assert lines[0].startswith("trial-0000: resumes")
    assert epochs(run) == list(range(8))
    assert " done" in out


def test_a_trial_that_is_stopped_by_hand_ends_the_sweep(start, tmp_path):
    run = tmp_path / "out/trial-0000"
    first = start("--", "--pause=0.1", "--epochs=50")
    until(lambda: epochs(run))
    (run / "STOP").touch()
    _, lines = ended(first, 1)
    assert lines[-1].startswith("stopped by trial-0000, which was stopped")


@pytest.mark.slow
def test_trials_that_fail(start, tmp_path):
    impossible = tmp_path / "impossible"
    impossible.write_text("2 3")
    arguments = ("--", f"--impossible={impossible}")
    out, lines = ended(start(*arguments))
    said = "failed: ValueError: x=2.0 cannot be had (exit status 1)"
    assert f"trial-0001: {said}" in lines
    assert said in out
    assert "2 of 4 trials: failed: --retry runs them again" in lines
    ended(start(*arguments))
    assert len(starts(tmp_path / "out/trial-0001")) == 1, "they are not tried again by themselves"
    impossible.write_text("")
    _, lines = ended(start("--retry", *arguments))
    assert [line.split(":")[0] for line in lines if "resumes" in line] == [
        "trial-0001",
        "trial-0002",
    ]


def test_three_failures_in_a_row_end_the_sweep(start, tmp_path):
    (tmp_path / "impossible").write_text("2 3 4")
    parameters = {"x": {"values": [1, 2, 3, 4, 5]}}
    arguments = ("--", f"--impossible={tmp_path / 'impossible'}")
    out, lines = ended(start(*arguments, parameters=parameters), 2)
    assert lines[-1].startswith("cpprune: error: ")
    assert "3 trials in a row failed, the last with: ValueError: x=4.0" in lines[-1]
    assert "--retry" in lines[-1]
    assert out == ""
    assert not (tmp_path / "out/trial-0004").exists()
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 5


def test_a_command_that_trains_elsewhere_fails(start, tmp_path):
    command = ["${interpreter}", "-c", "pass", "${args}"]
    _, lines = ended(start("--trials", 1, command=command), 2)
    assert "there is no result.json in" in lines[1]


@pytest.mark.slow
def test_poor_trials_end_early(start, tmp_path):
    parameters = {"x": {"values": [3, 10, 20, 3.0]}}
    early = {"type": "hyperband", "min_iter": 1, "eta": 2}
    process = start(
        "--json", "--", "--pause=0.2", "--epochs=8", parameters=parameters, early_terminate=early
    )
    out, lines = ended(process)
    trials = sorted(json.loads(out)["trials"], key=lambda trial: trial["number"])
    # After an epoch, the better half of 1, 2, 3 and 4 trials goes on; the last is as good as the first.
    assert [trial["state"] for trial in trials] == ["done", "ended early", "ended early", "done"]
    counts = [len(epochs(tmp_path / f"out/trial-{k:04d}")) for k in range(4)]
    assert counts[0] == counts[3] == 8
    assert max(counts[1:3]) < 8
    assert "trial-0001: ended early, after epoch 1" in lines
