"""Trials that fail: a sweep of nothing else has failed, and of others it is said how many."""

import json

import pytest

from cpprune.sweeps.results import TrialRecord, _rank

# A training whose first validation is not finite; with x=1 it diverges altogether.
DIVERGING = """
import json, sys
from pathlib import Path

given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
run, x = Path(given["run"]), int(given["x"])
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
lines = [{"epoch": 0, "val_log_loss": None, "best": False, "reason": "not finite", "parameters": 9}]
if x != 1:
    lines += [{"epoch": n, "val_log_loss": x / n, "best": True, "parameters": 9} for n in (1, 2, 3)]
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
result = {"failed": "it diverged"} if x == 1 else {"parameters": 9, "macs": 7}
(run / "result.json").write_text(json.dumps(result))
if x == 1:
    sys.exit("cpprune: error: it diverged; lower optim.lr")
"""


def test_a_trial_whose_folder_is_gone_comes_after_those_that_can_be_shown():
    rest = {"run": "", "epoch": 0, "parameters": 1, "macs": 1, "arguments": {}, "error": None}
    trials = [
        TrialRecord(number=0, state="done", value=None, **rest),
        TrialRecord(number=1, state="failed", value=None, **rest),
        TrialRecord(number=2, state="done", value=0.1, **rest),
        TrialRecord(number=3, state="done", value=0.2, **rest),
    ]
    best_first = sorted(trials, key=lambda trial: _rank(trial, "maximize"))
    assert [trial.number for trial in best_first] == [3, 2, 0, 1]


@pytest.fixture
def diverging(tmp_path):
    path = tmp_path / "diverging.py"
    path.write_text(DIVERGING)
    return path


def test_a_sweep_whose_trials_all_failed_has_failed(cli, sweep_file, diverging, tmp_path):
    file = sweep_file(program=str(diverging), parameters={"x": {"values": [1]}})
    out = tmp_path / "a sweep"
    outcome = cli("sweep", file, "--out", out)
    assert outcome.status == 2, outcome.err
    last = outcome.err.splitlines()[-1]
    assert last.startswith(
        f"cpprune: error: {out}: all 1 trials failed, the last with: it diverged"
    )
    assert "--retry" in last
    assert "Traceback" not in outcome.err
    assert cli("sweep", file, "--out", out, "--json").json["best"] is None


def test_a_sweep_that_failed_in_part_says_how_many(cli, sweep_file, diverging, tmp_path):
    early = {"type": "hyperband", "min_iter": 1, "eta": 2}
    parameters = {"x": {"values": [1, 2, 3]}}
    file = sweep_file(program=str(diverging), parameters=parameters, early_terminate=early)
    outcome = cli("sweep", file, "--out", tmp_path / "out", "--json")
    assert outcome.status == 0, outcome.err
    assert "1 of 3 trials: failed: --retry runs them again" in outcome.err
    states = {trial["number"]: trial["state"] for trial in outcome.json["trials"]}
    assert states[0] == "failed"
    assert "done" in states.values()
    assert outcome.json["best"]["value"] == pytest.approx(2 / 3)


def test_nan_of_an_older_version_is_no_result(cli, sweep_file, diverging, tmp_path):
    diverging.write_text(DIVERGING.replace('"val_log_loss": None', '"val_log_loss": float("nan")'))
    file = sweep_file(program=str(diverging), parameters={"x": {"values": [1, 2]}})
    outcome = cli("sweep", file, "--out", tmp_path / "out", "--json")
    assert outcome.status == 0, outcome.err
    assert "NaN" not in outcome.out
    assert outcome.json["best"]["number"] == 1


def test_a_sweep_of_an_older_version_goes_on(cli, sweep_file, diverging, tmp_path):
    """Its sweep.json lacks a key that came later."""
    file = sweep_file(program=str(diverging), parameters={"x": {"values": [2]}})
    assert cli("sweep", file, "--out", tmp_path / "out").status == 0
    path = tmp_path / "out/sweep.json"
    tree = json.loads(path.read_text())
    del tree["early"]
    path.write_text(json.dumps(tree))
    assert cli("sweep", file, "--out", tmp_path / "out").status == 0
    path.write_text(json.dumps({**tree, "goal": "maximize"}))
    assert "goal differs" in cli("sweep", file, "--out", tmp_path / "out").err
