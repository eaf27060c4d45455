"""Teachers on one, two and three processes: the same loss, the same step."""

import numpy as np
import pytest
from run_folder import assert_same_run, epochs_of, weights_of

# 32 clips in batches of 9, 9, 9 and 5. One epoch at a small learning rate, as rounding grows.
SETTINGS = ["--data.train_fraction", 0.25, "--train.batch_size", 9, "--train.epochs", 1]
SETTINGS += ["--optim.name", "sgd", "--optim.weight_decay", 0, "--optim.lr", 1e-4]
SETTINGS += ["--optim.schedule", "constant", "--augment.mixstyle_p", 1, "--augment.roll", 500]
SETTINGS += ["--augment.mixup_alpha", 0.4, "--augment.freq_mask", 20]
FRONT_END = ["--features.n_mels", 64, "--model.widths", "[6, 8, 10]"]


def way(start, end):
    """Return how every weight has changed, as one vector."""
    names = [name for name in start if name.endswith((".weight", ".bias"))]
    return np.concatenate([(end[n].double() - start[n].double()).flatten() for n in names])


@pytest.mark.parametrize("mode", ["clean", "on_the_fly"])
def test_teachers_teach_the_same_on_any_number_of_processes(
    ranks, call, scenes, tiny_run, tmp_path, mode
):
    words = [*SETTINGS, "--init", tiny_run / "model", "--data.path", scenes]
    words += ["--distill.teachers", f"[{tiny_run / 'model_last'}]", "--distill.mode", mode]
    words += ["--distill.label_weight", 0.5]
    assert call("train", *words, "--run", tmp_path / "whole") == 0
    ranks.cpprune("train", *words, "--run", tmp_path / "parts")
    (one,), (other,) = epochs_of(tmp_path / "whole"), epochs_of(tmp_path / "parts")
    assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
    start = weights_of(tiny_run)
    first, second = (
        way(start, weights_of(tmp_path / run, "model_last")) for run in ("whole", "parts")
    )
    assert np.linalg.norm(first - second) / np.linalg.norm(first) < 1e-2


def test_a_teacher_with_another_front_end(ranks, call, scenes, tiny_run, tmp_path):
    words = [*SETTINGS, *FRONT_END, "--data.path", scenes, "--distill.mode", "on_the_fly"]
    words += ["--distill.teachers", f"[{tiny_run / 'model'}]"]
    assert call("train", *words, "--run", tmp_path / "alone") == 0
    ranks.cpprune("train", *words, "--run", tmp_path / "together")
    (one,), (other,) = epochs_of(tmp_path / "alone"), epochs_of(tmp_path / "together")
    assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


def test_logits_are_written_once(ranks, call, scenes, tiny_run, tmp_path):
    words = ["logits", tiny_run / "model", "--data", scenes, "--split", "val", "--out"]
    assert call(*words, tmp_path / "alone.npz") == 0
    ranks.cpprune(*words, tmp_path / "together.npz")
    with np.load(tmp_path / "alone.npz") as one, np.load(tmp_path / "together.npz") as other:
        assert one["keys"].tolist() == other["keys"].tolist()
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
def test_a_cache_gives_the_bits_of_on_the_fly(ranks, call, scenes, tiny_run, tmp_path):
    """Whichever number of processes writes it, to rounding; read by as many as wrote it, to the bit."""
    words = [*SETTINGS, "--data.path", scenes, "--model.widths", "[6, 8, 10]"]
    words += ["--distill.teachers", f"[{tiny_run / 'model'}]", "--distill.mode", "on_the_fly"]
    words += ["--train.ema_decay", 0.9]
    cache = ["--distill.cache", tmp_path / "cache"]
    ranks.cpprune("train", *words, "--run", tmp_path / "fly")
    ranks.cpprune("train", *words, "--run", tmp_path / "writes", *cache)
    ranks.cpprune("train", *words, "--run", tmp_path / "reads", *cache)
    for run in ("writes", "reads"):
        assert_same_run(tmp_path / run, tmp_path / "fly")
    alone = ["--distill.cache", tmp_path / "alone"]
    assert call("train", *words, "--run", tmp_path / "one", *alone) == 0
    with (
        np.load(tmp_path / "alone/epoch-0000.npz") as one,
        np.load(tmp_path / "cache/epoch-0000.npz") as other,
    ):
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)
        assert one["logits"].std() > 0.01
    # Which is read on another number of processes than wrote it.
    assert call("train", *words, "--run", tmp_path / "other", *cache) == 0
    (first,), (second,) = epochs_of(tmp_path / "one"), epochs_of(tmp_path / "other")
    assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-5)
