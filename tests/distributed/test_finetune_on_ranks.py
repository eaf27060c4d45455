"""`cpprune finetune` on two processes: run after run in one group of processes."""

import json

import pytest

from cpprune.models.routed import load_routed


@pytest.mark.slow
def test_every_device_is_fine_tuned_by_both(two, tiny, tiny_run, scenes, tmp_path):
    settings = [
        *tiny,
        "--train.epochs",
        1,
        "--min-clips",
        4,
        "--init",
        tiny_run / "model",
        "--json",
    ]
    command = ["finetune", *settings, "--data.path", scenes, "--run", tmp_path / "fine"]
    first, second = two.cpprune(*command)
    models = json.loads(first["out"])["models"]
    tuned = {value for value, result in models.items() if result["after"] is not None}
    assert tuned == {"a", "b"}
    assert set(load_routed(tmp_path / "fine/model").models) <= tuned
    assert first["err"].count("2 process(es) on cpu") == 2
    assert second["out"] == ""
    assert second["err"] == ""


@pytest.mark.slow
def test_both_stop_together_and_go_on(two, tiny, tiny_run, scenes, tmp_path):
    """Within a device's run or between two; the limit is passed from the beginning."""
    settings = [*tiny, "--train.epochs", 1, "--min-clips", 4, "--train.time_limit_minutes", 1e-9]
    command = ["finetune", *settings, "--init", tiny_run / "model", "--data.path", scenes]
    stops = []
    while not (tmp_path / "fine/model").exists():
        first, second = two.cpprune(*command, "--run", tmp_path / "fine", "--json")
        assert second["out"] == ""
        stops.append(json.loads(first["out"]).get("stopped"))
        assert len(stops) < 9
    assert stops.pop() is None
    assert set(stops) == {"the time limit"}
    assert set(load_routed(tmp_path / "fine/model").models) <= {"a", "b"}
