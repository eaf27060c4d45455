"""Steps that are recorded and replayed, with a tape in the place of a CUDA graph."""

import pytest
import torch
from marks import slow
from run_folder import assert_same_run, weights_of
from tape import record

from cpprune.training import cuda_graph, engine, step
from cpprune.training.cuda_graph import Captured

CPU = torch.device("cpu")


# --- a function ---------------------------------------------------------------------------------------


class Sums:
    """Adds what it is given to what it keeps."""

    def __init__(self):
        self.total = torch.zeros(2)
        self.calls = 0

    def __call__(self, inputs, number):
        self.calls += 1
        self.total += inputs["x"].sum(0) * number
        return (self.total * 2,)


@pytest.fixture
def sums():
    return Sums()


def rows(*values):
    return {"x": torch.tensor([[float(v), 1.0] for v in values])}


def test_it_is_called_until_it_is_recorded(sums):
    captured = Captured(sums, CPU, record, plain_calls=2)
    results = [captured(rows(1), 1)[0] for _ in range(6)]
    assert torch.stack(results).tolist() == [[2.0 * n, 2.0 * n] for n in range(1, 7)]
    assert (sums.calls, captured.recorded) == (3, 1)
    assert captured(rows(10), 1)[0].tolist() == [32, 14]
    assert sums.calls == 3


def test_each_kind_of_call_has_its_own_recording(sums):
    captured = Captured(sums, CPU, record, plain_calls=1)
    expected = torch.zeros(2)
    for turn in range(5):
        for inputs, number in ((rows(turn), 1), (rows(turn, 3), 1), (rows(2, turn), 4)):
            expected += inputs["x"].sum(0) * number
            assert torch.equal(captured(inputs, number)[0], 2 * expected)
    assert (sums.calls, captured.recorded) == (6, 3)


def test_without_a_recorder_nothing_is_recorded(sums):
    captured = Captured(sums, CPU, None, plain_calls=1)
    for _ in range(4):
        captured(rows(1), 1)
    assert (sums.calls, captured.recorded) == (4, 0)


def test_the_tape_catches_what_a_graph_cannot_do(sums):
    """A number that changes on the host stays what it was; tensors to and from the host fail."""

    def stale(inputs, number):
        sums.calls += 1
        return (inputs["x"] + sums.calls,)

    captured = Captured(stale, CPU, record, plain_calls=0)
    assert captured(rows(1), 1)[0][0, 0] == captured(rows(1), 1)[0][0, 0] == 2
    for needs_host in (lambda x: x.sum().item(), lambda x: x + torch.tensor([1.0, 2.0])):
        captured = Captured(lambda inputs, _, do=needs_host: (do(inputs["x"]),), CPU, record, 0)
        with pytest.raises(AssertionError, match="needs the host"):
            captured(rows(1), 1)


def test_what_was_recorded_can_be_let_go_of(sums):
    captured = Captured(sums, CPU, record, plain_calls=1)
    for _ in range(3):
        captured(rows(1), 1)
    captured.forget()
    assert captured.recorded == 0
    assert captured(rows(1), 1)[0].tolist() == [8, 8]
    assert (sums.calls, captured.recorded) == (3, 0)


def test_there_is_no_recorder_without_a_gpu():
    assert cuda_graph.recorder(CPU) is None


# --- a training ---------------------------------------------------------------------------------------

SETTINGS = ["--model.widths", "[6, 8, 10]", "--train.batch_size", 7, "--data.train_fraction", 0.4]
SETTINGS += ["--optim.schedule", "cosine", "--optim.warmup_epochs", 2, "--train.epochs", 6]
# Some batches are mixed and some are not, all edges of filters differ, and the last batch is smaller.
SETTINGS += ["--augment.mixstyle_p", 0.5]
ALL = ["--augment.mixup_alpha", 0.3, "--augment.roll", 900, "--augment.freq_mask", 9]
ALL += ["--augment.time_mask", 9, "--train.ema_decay", 0.9, "--train.micro_batch_size", 3]
ALL += ["--train.clip_norm", 0.5, "--prune.ratio", 0.3, "--prune.start_epoch", 3]
ALL += ["--prune.sparsity", "growing", "--prune.sparsity_strength", 0.01]


@pytest.fixture
def taped(monkeypatch):
    """Let trainings record on this machine; returns what was recorded."""
    made = []

    def counted(run):
        made.append(run)
        return record(run)

    monkeypatch.setattr(cuda_graph, "recorder", lambda device: counted)
    monkeypatch.setattr(engine, "PLAIN_STEPS", 2)
    return made


@pytest.fixture
def command(cli, scenes, tmp_path, monkeypatch):
    """Runs a training with the learning rate in a tensor, recorded or not."""
    build = engine.build_optimizer

    def in_a_tensor(config, parameters, **options):
        return build(config, parameters, **{**options, "capturable": True})

    monkeypatch.setattr(engine, "build_optimizer", in_a_tensor)

    def run(name, *more):
        arguments = ["prune" if "--prune.ratio" in more else "train", *SETTINGS, *more]
        outcome = cli(*arguments, "--data.path", scenes, "--run", tmp_path / name)
        assert outcome.status == 0, outcome.err
        return tmp_path / name

    return run


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_recorded_training_ends_with_the_same_bits(command, taped, optimizer):
    settings = [*ALL, "--optim.name", optimizer]
    plain = command("plain", *settings, "--train.compile", "off")
    assert not taped
    recorded = command("recorded", *settings)
    assert len(taped) >= 4  # with and without mixing, before and after the cut
    assert_same_run(plain, recorded)


@pytest.mark.slow
def test_a_recorded_training_goes_on_with_the_same_bits(command, taped):
    """Where it goes on it takes plain steps again, which have to be the replayed ones."""
    settings = [*ALL, "--train.checkpoint_steps", 5]
    whole = command("whole", *settings)
    recorded = len(taped)
    for _ in range(100):
        stopped = command("stopped", *settings, "--train.time_limit_minutes", 1e-9)
        if (stopped / "result.json").exists():
            break
    assert (stopped / "result.json").exists()
    assert len(taped) == recorded, "every process took plain steps only"
    assert_same_run(whole, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", slow("sgd")])
def test_a_step_that_is_not_finite_changes_nothing(command, taped, monkeypatch, optimizer):
    """The host does not look; so the recorded step has to skip by itself. So has the very first."""
    inputs = step.TrainingStep.inputs

    def spoilt(self, epoch, batch, number):
        found = inputs(self, epoch, batch, number)
        if number in (0, 9, 14):
            found["clips"] = torch.full(found["clips"].shape, torch.nan)
        else:
            found["clips"] = found["clips"].float() / 32768
        return found

    monkeypatch.setattr(step.TrainingStep, "inputs", spoilt)
    plain = command("plain", "--optim.name", optimizer, "--train.compile", "off")
    recorded = command("recorded", "--optim.name", optimizer)
    assert taped
    assert_same_run(plain, recorded)
    assert all(t.abs().max() < 1e3 for t in weights_of(recorded, "model_last").values())


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        (["--train.precision", "fp16"], "set train.precision=bf16 or train.compile=auto"),
        (["--features.backend", "dali"], "set features.backend=torch or train.compile=auto"),
    ],
)
def test_what_cannot_be_captured_is_refused(cli, scenes, tmp_path, more, advice):
    run = tmp_path / "run"
    outcome = cli("train", "--data.path", scenes, "--train.compile", "graph", "--run", run, *more)
    assert outcome.status == 2
    assert "train.compile=graph" in outcome.err
    assert advice in outcome.err
    assert not run.exists()
