"""The shared folder of a sweep: what is drawn, what a kill leaves, what is said of a failure."""

import json

import numpy as np
import pytest

from cpprune.cli.sweep import trials_table
from cpprune.sweeps.definition import read_sweep
from cpprune.sweeps.results import collect, write_csv
from cpprune.sweeps.study import SharedStudy
from cpprune.sweeps.trial import TrialEpoch, last_error, read_epochs
from shards.files.atomic import drop_partial_line
from shards.files.locks import FileLock


@pytest.fixture
def board(sweep_file, tmp_path, monkeypatch):
    """Opens the folder of a sweep, as a process does; in the end closes what trials were taken with."""
    hold, files = SharedStudy._hold, []

    def noted(self, number):
        found = hold(self, number)
        files.extend(found or ())
        return found

    def open_board(name="sweep", **keys):
        return SharedStudy(tmp_path / name, read_sweep(sweep_file(**keys)), ())

    monkeypatch.setattr(SharedStudy, "_hold", noted)
    yield open_board
    for file in files:
        file.close()


def end(board, claim, value):
    claim.log.close()
    board.done(claim, value)
    claim.lock.close()


def tried(board, count, loss):
    """Run so many trials; return what was drawn of x."""
    found = []
    for _ in range(count):
        claim = board.claim(count)
        found.append(claim.arguments["x"])
        end(board, claim, loss(found[-1]))
    assert board.claim(count) is None
    return found


REAL = {"parameters": {"x": {"min": 0.0, "max": 10.0}}}


def test_random_trials_are_a_function_of_their_number(board):
    one = tried(board("one", method="random", **REAL), 4, abs)
    other = []
    for _ in range(4):
        process = board("other", method="random", **REAL)
        claim = process.claim(4)
        other.append(claim.arguments["x"])
        end(process, claim, 0)
    assert one == other
    assert len(set(one)) == 4


def test_bayes_draws_where_good_trials_were(board):
    found = np.array(tried(board(method="bayes", **REAL), 40, lambda x: (x - 3) ** 2))
    distance = abs(found - 3)
    assert np.median(distance[20:]) < np.median(distance[:10]) / 2
    assert distance.min() < 0.1
    rise = {"metric": {"name": "val_accuracy", "goal": "maximize"}}
    found = np.array(tried(board("up", method="bayes", **REAL, **rise), 30, float))
    assert np.median(found[20:]) > 8


def test_a_trial_is_taken_by_one_and_free_when_that_has_ended(board):
    one, other = board(), board()
    first, second = one.claim(9), other.claim(9)
    assert (first.number, second.number) == (0, 1)
    first.lock.close()
    assert other.claim(2) is None, "a process of the trial still holds its log"
    assert [row.state for row in other.status()] == ["running", "running"]
    first.log.close()
    assert [row.state for row in other.status()] == ["stopped", "running"]
    again = other.claim(2)
    assert (again.number, again.resumed, again.arguments) == (0, True, first.arguments)


def test_a_trial_that_was_queued_but_not_drawn_is_taken_first(board):
    from cpprune.sweeps.definition import grid_cell

    one = board()
    with one.transaction():
        one.study.enqueue_trial(grid_cell(one.sweep, 0))
    assert one.status() == []
    claims = [board().claim(4) for _ in range(4)]
    assert [claim.arguments["x"] for claim in claims] == [1, 2, 3, 4]
    assert board().claim(4) is None


def test_a_trial_that_was_not_fully_drawn_gets_the_rest(board):
    parameters = {"x": {"min": 0.0, "max": 1.0}, "y": {"values": [1, 2]}}
    one = board(method="random", parameters=parameters)
    with one.transaction():
        one.sweep.parameters[0].suggest(one.study.ask())
    assert one.status() == []
    claim = board(method="random", parameters=parameters).claim(1)
    assert claim.resumed
    assert claim.arguments.keys() == {"x", "y"}
    assert one.status()[0].values == claim.arguments


def test_a_line_that_a_kill_has_torn_is_taken_away(board):
    one = board()
    end(one, one.claim(2), 0.5)
    whole = one.journal.read_bytes()
    with one.journal.open("ab") as file:
        file.write(whole.splitlines()[-1][:20])
    other = board()
    claim = other.claim(2)
    assert claim.number == 1
    assert one.journal.read_bytes().startswith(whole)
    end(other, claim, 0.25)
    assert [row.state for row in one.status()] == ["done", "done"]


def test_only_the_torn_line_is_cut(tmp_path):
    path = tmp_path / "journal"
    for before, after in ((b"", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"a", b"")):
        path.write_bytes(before)
        drop_partial_line(path)
        assert path.read_bytes() == after


def test_a_lock_may_be_taken_twice_by_who_holds_it(tmp_path):
    lock = FileLock(tmp_path / "lock")
    with lock, lock:
        assert lock.depth == 2
    with FileLock(tmp_path / "lock"):
        assert lock.depth == 0


def test_what_the_sweep_is_lies_in_its_folder(board, tmp_path):
    board()
    kept = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert kept["parameters"][0]["path"] == ["x"]
    assert kept["parameters"][0]["values"] == [1, 2, 3, 4]


# --- what a trial leaves ------------------------------------------------------------------------------

LAUNCHED = """
epoch 1/2  loss 2.3
cpprune: error: optim.lr=-1: must be above 0
Traceback (most recent call last):
  File "accelerate", line 8, in <module>
subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 2.
"""
RAISED = """
[rank0]: Traceback (most recent call last):
[rank0]: torch.OutOfMemoryError: CUDA out of memory
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
"""


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (LAUNCHED, 1, "optim.lr=-1: must be above 0 (exit status 1)"),
        (RAISED, 1, "[rank0]: torch.OutOfMemoryError: CUDA out of memory (exit status 1)"),
        ("epoch 1/2\n\n", -9, "epoch 1/2 (killed by signal 9)"),
        ("", 3, "it printed nothing (exit status 3)"),
    ],
)
def test_the_line_that_says_why(tmp_path, text, status, said):
    log = tmp_path / "log"
    log.write_text("cpprune: error: of an earlier start\n" + text)
    assert last_error(log, log.read_text().index("\n") + 1, status) == said


def test_a_sweep_without_a_trial_has_results(board, tmp_path):
    one = board()
    found = collect(one)
    assert trials_table(found) == "no trial has begun"
    write_csv(found, tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text().startswith("number,state,val_log_loss,")


def test_a_line_that_is_being_written_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n{"event": "prune"}\n{"epo')
    assert read_epochs(tmp_path) == [TrialEpoch(epoch=0)]
    assert read_epochs(tmp_path / "none") == []
