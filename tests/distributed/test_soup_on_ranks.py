"""A soup on two processes: one folder, the same weights, the same accuracy."""

import json

import numpy as np
import pytest
from run_folder import weights_of


def test_a_soup_is_the_same_on_two_processes(two, cli, scenes, tiny_run, tmp_path):
    words = ["soup", tiny_run / "model", tiny_run / "model_last", "--data", scenes, "--json"]
    alone = cli(*words, "--out", tmp_path / "alone").json
    first, second = two.cpprune(*words, "--out", tmp_path / "together")
    assert second["out"] == ""
    together = json.loads(first["out"])
    assert together["val"]["log_loss"] == pytest.approx(alone["val"]["log_loss"], rel=1e-5)
    one, other = weights_of(tmp_path, "alone"), weights_of(tmp_path, "together")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(other[name], tensor, rtol=1e-4, atol=1e-6)
