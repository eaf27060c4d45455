"""Networks exported to be timed: the network alone, in the target's own arithmetic."""

import copy
import logging
from typing import Any

import pytest
import torch
from marks import has_wheels, slow
from networks import randomised

import cpprune
from cpprune.export.check import noise
from cpprune.export.complexity import onnx_complexity
from cpprune.export.timed import to_be_timed
from cpprune.models.quantized import calibrate, is_quantized, quantize
from shards.errors import UserError

SHAPE = (1, 64, 32)


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    built = cpprune.build_model("cp_resnet", num_classes=3, widths=[6, 8, 10])
    return randomised(built, gain=1.4).eval()


def same_classes(network: Any, form: str, tolerance: float) -> Any:
    """Return the export, whose logits are torch's to a part of the largest."""
    state = copy.deepcopy(network.state_dict())
    made = to_be_timed(network, SHAPE, form)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])
    clips = noise(made, 3)
    with torch.no_grad():
        expected = network(clips.float() / 255)
    found = made.logits(clips)
    assert (found - expected).abs().max() < tolerance * float(expected.abs().max())
    return made


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        ("onnx-fp32", 1e-4),
        slow("onnx-fp16", 1e-2),
        slow("onnx-int8", 0.3),
        slow("c-fp32", 1e-4),
        slow("c-int8", 0.3),
    ],
)
def test_it_computes_what_the_network_does(network: Any, form: str, tolerance: float) -> None:
    made = same_classes(network, form, tolerance)
    if form.startswith("onnx"):
        assert made.metadata.input == "features"
        assert onnx_complexity(made._graph, 1)["bytes"]["front_end"] == 0
        assert made._session.get_session_options().intra_op_num_threads == 1


@pytest.mark.slow
@has_wheels
@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        ("tflite-fp32", 1e-3),
        ("tflite-int8", 0.3),
        ("executorch-fp32", 1e-3),
        ("executorch-int8", 0.3),
    ],
)
def test_other_targets(network: Any, form: str, tolerance: float) -> None:
    same_classes(network, form, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx-fp32", "onnx-int8"])
def test_fake_quantised_networks(network: Any, form: str) -> None:
    fake = copy.deepcopy(network)
    quantize(fake, SHAPE)
    calibrate(fake, [torch.rand(4, *SHAPE)])
    same_classes(fake, form, 0.3)
    assert is_quantized(fake)


@pytest.mark.slow
def test_nothing_is_said_of_what_is_thrown_away(
    network: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of saturation, however large, nor is any size measured."""
    monkeypatch.setattr("cpprune.export.targets.onnx_file.SATURATION", -1.0)
    monkeypatch.setattr("cpprune.export.c.host.sizes", lambda sources: pytest.fail("compiled"))
    with caplog.at_level(logging.WARNING):
        to_be_timed(network, SHAPE, "onnx-int8")
        to_be_timed(network, SHAPE, "c-fp32")
    assert not caplog.records


def test_without_a_compiler(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(UserError, match=r"^latency in C runs the C .* no C compiler: install one"):
        to_be_timed(network, SHAPE, "c-int8")
