"""Training on a GPU: what a CPU computes, compiled or not, cut or not, stopped or not."""

import pytest
import torch
from run_folder import assert_close, assert_same_run

import cpprune
from cpprune.audio.config import PRESETS
from cpprune.audio.frontend import LogMel
from cpprune.training import engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def command(from_tiny):
    return ["prune", "--prune.ratio", 0.3, "--prune.start_epoch", 1, *from_tiny]


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("jitter", [False, True])
def test_the_front_end_is_that_of_the_cpu(preset, jitter):
    features = LogMel(PRESETS[preset])
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(-8000, 8000, (9, 32_000), generator=generator).to(torch.int16)
    edges = torch.tensor([3.0, 15_200.0]) if jitter and PRESETS[preset].fmax_jitter else None
    expected = features(clips, edges)
    found = features.cuda()(clips.cuda(), None if edges is None else edges.cuda())
    assert (found.cpu() - expected).abs().max() < 5e-4


def test_a_run_is_that_of_the_cpu(trains, command, tmp_path, monkeypatch):
    trains(*command, tmp_path / "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trains(*command, tmp_path / "cpu")
    assert_close(tmp_path / "cpu", tmp_path / "gpu", 1e-3)


@pytest.mark.parametrize(
    ("compiled", "precision"),
    [("inductor", "no"), ("inductor", "fp16"), ("graph", "no"), ("graph", "bf16")],
)
def test_compiling_changes_nothing_and_cuts_go_through(
    trains, command, tmp_path, recorded, compiled, precision
):
    """Cut before the second epoch, after which everything is compiled anew."""
    more = ["--train.precision", precision]
    trains(*command, tmp_path / "off", *more, "--train.compile", "off")
    trains(*command, tmp_path / "on", *more, "--train.compile", compiled)
    assert len(recorded) == (2 if compiled == "graph" else 0)
    assert_close(tmp_path / "off", tmp_path / "on", 1e-3 if precision == "no" else 2e-2)
    sizes = [cpprune.load(tmp_path / run / "model_last").parameters() for run in ("off", "on")]
    counts = [sum(p.numel() for p in parameters) for parameters in sizes]
    assert counts[0] == counts[1] < 2_650


@pytest.mark.parametrize("compiled", ["inductor", "graph"])
def test_code_is_made_anew_after_any_number_of_cuts(trains, command, tmp_path, recorded, compiled):
    more = ["--prune.ratio", 0.5, "--prune.start_epoch", 0, "--prune.steps", 10]
    more += ["--train.epochs", 10]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        trains(*command, tmp_path / "run", *more, "--train.compile", compiled)
    assert len(recorded) == (10 if compiled == "graph" else 0)


@pytest.mark.parametrize(
    ("compiled", "optimizer"),
    [("capture", "adam"), ("capture", "adamw"), ("capture", "sgd"), ("graph", "adamw")],
)
def test_captured_steps_are_the_plain_ones_bit_by_bit(
    trains, command, tmp_path, recorded, monkeypatch, compiled, optimizer
):
    more = ["--optim.name", optimizer, "--train.compile", compiled, "--train.precision", "bf16"]
    more += ["--augment.mixstyle_p", 0.5]
    more += ["--augment.mixup_alpha", 0.3, "--augment.roll", 900, "--augment.freq_mask", 9]
    more += ["--augment.time_mask", 9, "--train.ema_decay", 0.9, "--train.micro_batch_size", 3]
    more += ["--train.clip_norm", 0.5, "--prune.sparsity", "growing", "--train.epochs", 5]
    stream = torch.cuda.current_stream()
    trains(*command, tmp_path / "captured", *more)
    assert torch.cuda.current_stream() == stream
    captured = len(recorded)
    assert captured >= 2
    monkeypatch.setattr(engine, "PLAIN_STEPS", 10**6)
    trains(*command, tmp_path / "plain", *more)
    assert len(recorded) == captured
    assert_same_run(tmp_path / "captured", tmp_path / "plain")


@pytest.mark.parametrize("resident", ["device", "host", "off"])
@pytest.mark.parametrize("compiled", ["off", "capture", "graph"])
def test_a_stopped_run_ends_with_the_same_bits(
    trains, command, tmp_path, recorded, compiled, resident
):
    more = [
        "--train.compile",
        compiled,
        "--train.checkpoint_steps",
        1,
        "--data.in_memory",
        resident,
    ]
    more += ["--prune.sparsity", "group_norm"]
    trains(*command, tmp_path / "whole", *more)
    stop = ["--train.time_limit_minutes", 1e-9]
    trains(*command, tmp_path / "stopped", *more, *stop)
    outcome = trains(*command, tmp_path / "stopped", *more)
    assert "goes on from" in outcome.err
    assert bool(recorded) == (compiled != "off")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
