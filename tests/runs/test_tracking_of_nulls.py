"""What trackers are told of an epoch whose figures are not finite."""

import math

from cpprune.runs.trackers.tracker import scalars


def test_only_numbers_are_told():
    record = {"epoch": 1, "val_log_loss": None, "train_loss": math.nan, "lr": 0.1, "reason": "x"}
    assert scalars(record) == {"epoch": 1, "lr": 0.1}
    assert scalars({"event": "prune", "part": math.inf, "step": 3}) == {"prune/step": 3}
