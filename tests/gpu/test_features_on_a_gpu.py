"""Teachers, impulse responses, quantisation and more on a GPU: as on a CPU, captured if possible."""

import numpy as np
import pytest
import soundfile
import torch
import zoo
from run_folder import assert_close, assert_same_run

from cpprune.training import engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def command(from_tiny):
    return ["train", *from_tiny]


@pytest.fixture
def settings(tiny_run, tmp_path):
    """The settings of a feature by its name."""
    waves = tmp_path / "responses"
    waves.mkdir()
    decay = np.exp(-np.arange(600) / 100) * np.random.default_rng(0).normal(size=600)
    soundfile.write(waves / "a.wav", 0.2 * decay, 32_000, subtype="FLOAT")
    teacher = ["--distill.teachers", f"[{tiny_run / 'model'}]"]
    return {
        "distill": teacher,
        "on the fly": [*teacher, "--distill.mode", "on_the_fly", "--augment.mixup_alpha", 0.3],
        "impulse responses": ["--augment.impulse_responses", waves],
        "quantize": ["--quantize.start_epoch", 1],
        "devices": [
            "--augment.impulse_responses",
            waves,
            "--augment.impulse_response_devices",
            "[a]",
        ],
    }


@pytest.mark.parametrize(
    "feature", ["distill", "on the fly", "impulse responses", "quantize", "devices"]
)
def test_it_is_that_of_the_cpu(trains, command, settings, tmp_path, recorded, monkeypatch, feature):
    trains(*command, tmp_path / "gpu", *settings[feature])
    assert recorded, "steps are captured by default"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trains(*command, tmp_path / "cpu", *settings[feature])
    assert_close(tmp_path / "cpu", tmp_path / "gpu", 1e-3)


def test_cached_logits_are_those_of_the_fly(trains, command, settings, tmp_path, recorded):
    cache = ["--distill.cache", tmp_path / "cache"]
    trains(*command, tmp_path / "plain", *settings["on the fly"], "--train.compile", "off")
    assert not recorded
    for name in ("written", "read"):
        trains(*command, tmp_path / name, *settings["on the fly"], *cache)
        assert recorded
        assert_same_run(tmp_path / "plain", tmp_path / name)


class Caching(zoo.Plain):
    """Keeps something from its first call in training."""

    shape = None

    def middle(self, x):
        if self.training and self.shape is None:
            self.shape = str(x.shape[1:])
        return super().middle(x)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zoo:Waiting", "waits for the GPU"),
        ("zoo:Counting", "changes an attribute of its own (steps)"),
        ("zoo:StochasticDepth", "draws from the random numbers of Python or NumPy"),
        ("zoo:Dropout", ""),
        (f"{__name__}:Caching", ""),
    ],
)
def test_a_network_that_asks_the_host_is_not_captured(
    trains, cli, scenes, tmp_path, recorded, monkeypatch, name, reason
):
    words = ["train", "--data.path", scenes, "--model.factory", name, "--trust", name.split(":")[0]]
    words += ["--train.batch_size", 8, "--train.epochs", 1, "--data.train_fraction", 0.25, "--run"]
    outcome = trains(*words, tmp_path / "run")
    assert bool(recorded) == (not reason)
    assert (f"not captured as CUDA graphs: the network {reason}" in outcome.err) == bool(reason)
    if reason:
        outcome = cli(*words, tmp_path / "captured", "--train.compile", "capture")
        assert outcome.status == 2
        assert f"the network {reason}, which a CUDA graph does not replay" in outcome.err
    if name == "zoo:Dropout":
        monkeypatch.setattr(engine, "PLAIN_STEPS", 10**6)
        trains(*words, tmp_path / "plain")
        assert_same_run(tmp_path / "plain", tmp_path / "run")


def test_commands_take_what_a_gpu_trained(trains, command, scenes, tmp_path, monkeypatch):
    """Evaluated on the GPU and on the CPU, averaged, and as an ensemble."""
    for seed in (0, 1):
        trains(*command, tmp_path / str(seed), "--seed", seed)
    models = [tmp_path / "0/model", tmp_path / "1/model"]
    trains("soup", *models, "--data", scenes, "--out", tmp_path / "soup")
    asked = [["evaluate", tmp_path / "soup"], ["ensemble", *models], ["evaluate", models[0]]]

    def losses():
        end = ["--data", scenes, "--split", "val", "--json"]
        return [trains(*words, *end).json["log_loss"] for words in asked]

    found = losses()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found == pytest.approx(losses(), rel=1e-4)
