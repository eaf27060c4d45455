"""Several processes that train over a URL, on one cache."""

import pytest
from run_folder import assert_same_run

SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", 8, "--train.epochs", 1]
SETTINGS += ["--data.train_fraction", 0.25, "--optim.schedule", "constant"]


@pytest.mark.slow
def test_training_over_a_url_is_the_same(two, scenes, tmp_path):
    runs = [tmp_path / "local", tmp_path / "remote"]
    cache = tmp_path / "cache"
    two.cpprune("train", *SETTINGS, "--data.path", scenes, "--run", runs[0])
    remote = ["--data.path", f"file://{scenes}", "--data.cache", cache]
    two.cpprune("train", *SETTINGS, *remote, "--run", runs[1])
    assert_same_run(*runs)
    assert {path.name for path in cache.glob("[0-9a-f]*/*.tar*")} == {
        "train-000000.tar",
        "val-000000.tar",
    }
