"""Model folders that somebody forged: one line each, and nothing larger than the files is built."""

import hashlib
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import cpprune
from cpprune.audio.config import MelSpec
from cpprune.audio.frontend import build_features
from cpprune.models import artifact
from cpprune.models.artifact import Model
from shards.errors import UserError

SPEC = MelSpec(
    sample_rate=8000, window=200, hop=80, n_fft=256, n_mels=40, fmin_jitter=3, fmax_jitter=500
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = Model(
        cpprune.build_model("cp_resnet", num_classes=3, widths=[4, 5, 6]),
        build_features(SPEC),
        family="cp_resnet",
        config={"widths": [4, 5, 6], "rho": 4, "blocks": [2, 2, 2]},
        classes=["bus", "park", "tram"],
        clip_shape=(8000,),
        metadata={"provenance": {"seed": 3}, "metrics": {}},
    )
    artifact.save(model, tmp_path / "model")
    return tmp_path / "model"


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def forge_weights(folder: Path, payload: bytes) -> None:
    (folder / "model.safetensors").write_bytes(payload)
    forge(folder, lambda d: d["weights"].update(sha256=hashlib.sha256(payload).hexdigest()))


def refused(cli: Callable[..., Any], folder: Path) -> str:
    outcome = cli("info", folder)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert "model.json" in outcome.err or "model.safetensors" in outcome.err
    return str(outcome.err)


@pytest.mark.parametrize(
    "config",
    [
        {"widths": [2500, 2500, 2500]},  # a gigabyte
        {"widths": [2**40, 5, 6]},
        {"widths": [2**62, 5, 6]},
        {"base_channels": 10**9},
        {"base_channels": 4, "channels_multiplier": 1e300},
        {"base_channels": 4, "channels_multiplier": -1e300},
        {"widths": [4, 5, 6], "blocks": [10**8, 1, 1]},
        {"widths": [4, 5, 6], "blocks": [2, 2, 10**12]},
        {"widths": [4, 5, 6], "groups": [10**30, 1, 1]},
        {"widths": [4, 5, 6], "rho": 10**18},
        {"widths": ["4", 5, 6]},
        {"widths": [4.5, 5, 6]},
        {"widths": "456"},
        {"widths": {"a": 4, "b": 5, "c": 6}},
        {"widths": [4, 5, 6], "rho": True},
        {"widths": [4, 5, 6], "groups": 1},
        {"widths": [4, 5, 6], "num_classes": 3},
        {"widths": [4, 5, 6], "name": "cp_resnet"},
        {"widths": [4, 5, 6], "self": 1},
        {"groups": "ab"},
        {"groups": []},
    ],
    ids=str,
)
def test_no_network_is_built_that_is_larger_than_its_tensors(cli, folder, config):
    forge(folder, lambda d: d.update(config=config))
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refused(cli, folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
    assert time.process_time() - begin < 60


def test_one_that_was_wider_before_it_was_pruned_is(folder):
    """Only the tensors that are there are allocated."""
    forge(folder, lambda d: d.update(config={"widths": [100_000, 200_000, 300_000]}))
    network = artifact.load(folder).network
    assert sum(p.numel() for p in network.parameters()) < 10_000
    assert not any(p.is_meta for p in [*network.parameters(), *network.buffers()])


@pytest.mark.parametrize("family", ["cp_resnet", "cp_mobile"])
def test_a_family_keeps_nothing_beside_its_state_dict(family):
    """So a network that is built without memory and then filled is whole."""
    network = cpprune.build_model(family)
    assert {name for name, _ in network.named_buffers()} <= network.state_dict().keys()


OWN = """
import torch
from torch import nn

def deep(num_classes: int, depth: int = 1, width: int = 4) -> nn.Module:
    layers = [nn.Linear(40, width), *(nn.Linear(width, width) for _ in range(depth))]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
"""


@pytest.mark.parametrize("config", [{"depth": 10**7}, {"width": 10**5}], ids=str)
def test_nor_by_a_factory_that_is_trusted(cli, folder, monkeypatch, config):
    (folder.parent / "bounded_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder.parent)
    description = {"architecture": "bounded_nets:deep", "config": config}
    forge(folder, lambda d: d.update(description))
    outcome = cli("info", folder, "--trust", "bounded_nets")
    assert outcome.status == 2
    assert "far more, or larger, tensors than the file" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip_shape", [2**60]),
        ("clip_shape", [-8000]),
        ("clip_shape", [8000.0]),
        ("clip_shape", [8000, 1]),
        ("clip_shape", []),
        ("classes", []),
        ("classes", [1, 2, 3]),
        ("classes", "abc"),
        ("classes", [None, "park", "tram"]),
        ("classes", ["a\0b", "park", "tram"]),
        ("classes", ["\ud800", "park", "tram"]),
        ("architecture", 3),
        ("architecture", None),
        ("architecture", ["cp_resnet"]),
        ("architecture", {}),
        ("widths", None),
        ("widths", {"in_c.0": 4.0}),
        ("features", {"n_mels": 10**9}),
        ("features", {"n_mels": 40, "n_fft": 2**40, "window": 2}),
        ("features", {"sample_rate": 10**18}),
        ("features", {"hop": 1, "sample_rate": 8000, "fmax_jitter": 10**15}),
        ("features", {"hop": 1.0}),
        ("features", {"mel": ["kaldi"]}),
        ("features", {"normalise": "yes"}),
        ("features", {"pre_emphasis": "0.97"}),
        ("features", {"pre_emphasis": float("nan")}),
        ("features", {"a number of tomorrow": 1}),
        ("features", []),
        ("weights", {}),
        ("weights", {"sha256": 3}),
        ("weights", None),
        ("weights", "0"),
        ("format", [1]),
        ("format", True),
        ("format", 1.0),
    ],
    ids=str,
)
def test_what_is_of_another_kind_is_named(cli, folder, key, value):
    forge(folder, lambda d: d.update({key: value}))
    refused(cli, folder)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format":' * 1000, '{"format": 1, "x": ' + "9" * 5000 + "}", "\ufeff[1]"],
    ids=lambda text: text[:10],
)
def test_documents_that_break_readers(cli, folder, text):
    (folder / "model.json").write_text(text)
    refused(cli, folder)


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"[" * 100,
        header(x={"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}),
        header(x={"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}) + bytes(4),
        header(x={"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}) + bytes(4),
        header(x={"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}) + bytes(4),
        header(x={"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}) + bytes(8),
        header(),
    ],
    ids=repr,
)
def test_weights_of_no_sense(cli, folder, payload):
    forge_weights(folder, payload)
    refused(cli, folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind(cli, folder, kind):
    tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    tensors["in_c.0.weight"] = tensors["in_c.0.weight"].to(kind)
    forge_weights(folder, safetensors.torch.save(tensors))
    assert str(kind) in refused(cli, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_said(cli, folder, value):
    tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    tensors["in_c.0.weight"][0] = value
    forge_weights(folder, safetensors.torch.save(tensors))
    assert "not finite, in in_c.0.weight" in refused(cli, folder)


def test_a_file_that_only_looks_large_is_not_read(cli, folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 42)  # takes no space on the disk
    assert "bytes; at most" in refused(cli, folder)


def test_what_is_computed_wins_over_what_stands_in_the_file(cli, folder):
    true = cli("info", folder, "--json").json
    lies = dict.fromkeys(true, 1) | {"parameters": 7, "macs": "none", "latency_ms": 0.001}
    kept = ("format", "architecture", "config", "widths", "classes", "clip_shape", "features")
    forge(folder, lambda d: d.update({k: v for k, v in lies.items() if k not in kept}))
    found = cli("info", folder, "--json").json
    computed = ("parameters", "macs", "bytes", "limits", "receptive_field", "input_shape", "widths")
    assert {key: found[key] for key in computed} == {key: true[key] for key in computed}
    assert cli("info", folder).status == 0
    # Nor are they carried over into the next folder.
    model = artifact.load(folder)
    artifact.save(model, folder.parent / "again")
    again = json.loads((folder.parent / "again/model.json").read_text())
    assert again["input_shape"] == true["input_shape"]
    assert again["weights"]["parameters"] == true["parameters"]


def test_a_pipe_in_place_of_a_file_is_refused(cli, folder):
    import os

    for name in ("model.safetensors", "model.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError):
            artifact.load(folder)
