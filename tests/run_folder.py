"""What a run left in its folder, and that two runs left the same."""

import hashlib
import json

import pytest
import safetensors.torch
import torch

TIMES = {"seconds", "clips_per_second", "memory_bytes"}


def metrics(run):
    """Return the lines of metrics.jsonl, without what the machine alone decides."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def epochs_of(run):
    """Return the lines of metrics.jsonl that are epochs."""
    return [line for line in metrics(run) if "event" not in line]


def events_of(run):
    """Return the lines of metrics.jsonl that are cuts."""
    return [line for line in metrics(run) if line.get("event") == "prune"]


def ids_of(run, rank=0):
    """Return the lines in which a rank recorded the clips of its batches."""
    lines = (run / f"ids/rank-{rank}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def tensors(path):
    """Return the tensors of a safetensors file by name; they outlive the file."""
    return {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}


def weights_of(run, model="model"):
    """Return the tensors of a run's best model, or of its `model_last`."""
    return tensors(run / model / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_same_run(one, other):
    """Fail unless two runs hold the same bits: models, last checkpoint, figures of every epoch."""
    assert metrics(one) == metrics(other)
    last = max((one / "checkpoints").iterdir()).name
    for name in (
        "model/model.safetensors",
        "model_last/model.safetensors",
        f"checkpoints/{last}/network.safetensors",
        f"checkpoints/{last}/optimizer.safetensors",
        f"checkpoints/{last}/average.safetensors",
    ):
        assert equal(tensors(one / name), tensors(other / name)), name
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]


def assert_close(one, other, tolerance):
    """Compare the losses of all epochs and the last weights of two runs."""
    for first, second in zip(epochs_of(one), epochs_of(other), strict=True):
        for figure in ("train_loss", "val_log_loss"):
            assert second[figure] == pytest.approx(first[figure], rel=tolerance)
    weights = weights_of(other)
    for name, tensor in weights_of(one).items():
        assert torch.allclose(tensor.float(), weights[name].float(), rtol=1e-2, atol=tolerance), (
            name
        )


def change_state(run, do):
    """Change the state that the run's checkpoint holds, as if it had been written like that."""
    (folder,) = (run / "checkpoints").iterdir()
    state = json.loads((folder / "state.json").read_text())
    do(state)
    text = json.dumps(state)
    (folder / "state.json").write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.json"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
