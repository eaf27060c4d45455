"""A sweep's folder that somebody forged or damaged is one line."""

import json
import os
import random

import pytest

from cpprune.sweeps.definition import read_sweep
from cpprune.sweeps.results import collect
from cpprune.sweeps.study import SharedStudy
from shards.errors import UserError

BROKEN = [b"null\n", b"[]\n", b"3\n", b'"x"\n', b"\xff\xfe\n", b"[" * 50_000 + b"\n",
          b"9" * 5000 + b"\n", b"{\n", b'{"op_code": 99}\n', b'{"op_code": 4}\n', b'{"a": 1, "a": 2}\n',
          b"\0" * 9 + b"\n"]  # fmt: skip


@pytest.fixture
def folder(sweep_file, tmp_path):
    """A sweep of two trials, one of which is done."""
    board = SharedStudy(tmp_path / "sweep", read_sweep(sweep_file()), ())
    for number in range(2):
        claim = board.claim(4)
        claim.log.close()
        if not number:
            board.done(claim, 0.5)
            run = board.path(number)
            run.mkdir()
            (run / "result.json").write_text('{"parameters": 3, "macs": 4}')
            (run / "metrics.jsonl").write_text('{"epoch": 0, "val_log_loss": 0.5, "best": true}\n')
        claim.lock.close()
    return board.folder


def opened(folder, sweep_file):
    return collect(SharedStudy(folder, read_sweep(sweep_file()), ()))


def refused(folder, sweep_file, name):
    with pytest.raises(UserError, match=name) as error:
        opened(folder, sweep_file)
    assert "\n" not in str(error.value)


def test_what_is_whole_is_read(folder, sweep_file):
    found = opened(folder, sweep_file)
    assert [trial.state for trial in found.trials] == ["done", "stopped"]


@pytest.mark.parametrize("data", BROKEN, ids=lambda data: repr(data[:12]))
def test_journals(folder, sweep_file, data):
    journal = folder / "journal.log"
    whole = journal.read_bytes()
    for forged in (data, whole + data):
        journal.write_bytes(forged)
        refused(folder, sweep_file, r"journal\.log: is damaged")


def test_lines_of_other_kinds(folder, sweep_file):
    journal = folder / "journal.log"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    draw = random.Random(0)
    for _ in range(60):
        forged = [dict(line) for line in lines]
        line = draw.choice(forged)
        line[draw.choice(sorted(line))] = draw.choice(["x", -1, None, [], {}, 10**18, True, [[1]]])
        journal.write_text("".join(f"{json.dumps(line)}\n" for line in forged))
        try:
            opened(folder, sweep_file)
        except UserError as error:
            message = str(error)
        else:
            message = ""
        assert "\n" not in message


def test_other_files(folder, sweep_file):
    for name in ("sweep.json", "trial-0000/result.json", "trial-0000/metrics.jsonl"):
        path = folder / name
        whole = path.read_bytes()
        for data in BROKEN[:8]:
            path.write_bytes(data)
            refused(folder, sweep_file, "not a sweep" if name == "sweep.json" else name)
        path.write_bytes(whole)
    journal = folder / "journal.log"
    journal.unlink()
    os.mkfifo(journal)
    refused(folder, sweep_file, "something else|pipe or device")


@pytest.mark.parametrize(
    "data", [*BROKEN, b"a: &a [*a]", b"method: [grid]", b"1: 2", b"x: 1\nx: 2"]
)
def test_definitions(tmp_path, data):
    file = tmp_path / "sweep.yaml"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"sweep\.yaml") as error:
        read_sweep(file)
    assert "\n" not in str(error.value)


def test_a_grid_without_end_is_refused(sweep_file):
    for values in (
        {"min": 0, "max": 10**12},
        {"distribution": "q_uniform", "min": 0, "max": 1e9, "q": 1e-6},
    ):
        with pytest.raises(UserError, match=r"at most 100,000 values"):
            read_sweep(sweep_file(parameters={"x": values}))
