"""An exported file gives the logits of the model, and says what it is and nothing else."""

import hashlib
import json

import numpy as np
import onnx
import pytest
import torch
from export_models import CLASSES, KALDI, MAKERS
from marks import slow
from networks import randomised
from torch import nn

import cpprune
from cpprune.audio.frontend import spec_to_json
from cpprune.export.build import build_file
from cpprune.export.inputs import choose_input
from cpprune.export.network import export_network
from cpprune.export.onnx_model import OnnxModel
from cpprune.export.quantize import quantize_int8, store_fp16
from shards.errors import UserError

SHA = "5" * 64


def clips_of(model, number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high, dtype = (-9000, 9000, torch.int16) if model.sample_rate else (0, 256, torch.uint8)
    return torch.randint(low, high, (number, *model.clip_shape), generator=generator, dtype=dtype)


def file_of(exported, kind=None, precision="fp32", network=None):
    model = exported.model
    return build_file(model, network or exported.network, choose_input(model, kind), precision, SHA)


@pytest.mark.parametrize("name", [name if name == "small" else slow(name) for name in MAKERS])
def test_logits_are_those_of_the_model(exported, name):
    made = exported(name)
    found = OnnxModel(file_of(made), threads=1)
    for batch in (1, 3):
        clips = clips_of(made.model, batch)
        expected = made.model.logits(clips)
        assert expected.std() > 0.01
        torch.testing.assert_close(found.logits(clips), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["small", "pruned"])  # their front ends differ
@pytest.mark.parametrize("kind", ["waveform", "int16", "features"])
def test_every_kind_of_input(exported, kind, name):
    made = exported(name)
    model = made.model
    data = file_of(made, kind)
    clips = clips_of(model, 2)
    found = OnnxModel(data, threads=1)
    torch.testing.assert_close(found.logits(clips), model.logits(clips), atol=1e-4, rtol=0)
    given = onnx.load_model_from_string(data).graph.input[0]
    dims = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert dims == ["batch", *(model.input_shape if kind == "features" else model.clip_shape)]
    expected = onnx.TensorProto.INT16 if kind == "int16" else onnx.TensorProto.FLOAT
    assert given.type.tensor_type.elem_type == expected


def test_inputs_that_a_model_cannot_take(exported):
    with pytest.raises(UserError, match="image: the model takes audio"):
        choose_input(exported("small").model, "image")
    with pytest.raises(UserError, match="waveform: the model takes images"):
        choose_input(exported("digits").model, "waveform")
    assert choose_input(exported("digits").model, None) == "image"


def test_the_same_model_is_the_same_bytes(exported):
    made = exported("small")
    again = export_network(made.model.network, made.model.input_shape)
    assert file_of(made) == file_of(made, network=again)


def test_metadata(exported):
    made = exported("small")
    data = file_of(made)
    values = {entry.key: entry.value for entry in onnx.load_model_from_string(data).metadata_props}
    seal = values.pop("sha256")
    assert {key: json.loads(value) for key, value in values.items()} == {
        "format": 1,
        "cpprune_version": cpprune.__version__,
        "weights_sha256": SHA,
        "precision": "fp32",
        "input": "waveform",
        "classes": list(CLASSES),
        "clip_shape": [4000],
        "sample_rate": 8000,
        "features": spec_to_json(KALDI),
        "architecture": "cp_resnet",
    }
    unsealed = data.replace(seal.encode(), b"0" * 64)
    assert hashlib.sha256(unsealed).hexdigest() == seal


def test_nothing_of_this_machine_is_in_the_file(exported):
    data = file_of(exported("small"))
    for text in (b"/home", b"/tmp", b"site-packages", b".py", b"stack_trace", b"torch"):
        assert text not in data
    model = onnx.load_model_from_string(data)
    assert not any(constant.external_data for constant in model.graph.initializer)
    assert "stage1.block1.conv1" in {node.name for node in model.graph.node}


def test_complexity(exported):
    made = exported("small")
    found = OnnxModel(file_of(made), threads=1).complexity()
    network, shape = made.model.network, made.model.input_shape
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    sizes: dict[nn.Module, int] = {}
    for module in convolutions:
        module.register_forward_hook(lambda m, _, y: sizes.__setitem__(m, y[0, 0].numel()))
    network(torch.zeros(1, *shape))
    assert found["macs"] == sum(m.weight.numel() * sizes[m] for m in convolutions)
    # A bias for each channel, from batch normalisation.
    numbers = sum(m.weight.numel() + m.out_channels for m in convolutions)
    assert found["parameters"] == numbers
    assert 4 * numbers <= found["bytes"]["network"] < 4 * numbers + 100
    assert found["limits"]["bytes"] == {"limit": 128_000, "ok": {"network": True}}


def test_fp16_is_the_network_with_rounded_weights(exported):
    made = exported("small")
    full, half = (
        OnnxModel(file_of(made), 1),
        OnnxModel(file_of(made, precision="fp16", network=store_fp16(made.network)), 1),
    )
    one, other = full.complexity(), half.complexity()
    assert other["parameters"] == one["parameters"]
    assert other["macs"] == one["macs"]
    assert other["bytes"]["network"] < 0.52 * one["bytes"]["network"]
    clips = clips_of(made.model, 4)
    difference = (half.logits(clips) - full.logits(clips)).abs().max()
    assert 0 < difference < 5e-3 * full.logits(clips).abs().max()


def test_int8(exported):
    made = exported("small")
    with torch.no_grad():
        inputs = made.model.features(clips_of(made.model, 32, seed=1)).numpy()
    full = OnnxModel(file_of(made), 1)
    sizes, differences = [], []
    clips = clips_of(made.model, 8)
    expected = full.logits(clips)
    for keep, layers in (((), set()), (("first", "feed_forward.0"), {"in_c.0", "feed_forward.0"})):
        network = quantize_int8(made.network, inputs, keep)
        assert network == quantize_int8(made.network, inputs, keep)
        found = OnnxModel(file_of(made, precision="int8", network=network), 1)
        cost = found.complexity()
        assert cost["parameters"] == full.complexity()["parameters"]
        assert cost["macs"] == full.complexity()["macs"]
        sizes.append(cost["bytes"]["network"])
        differences.append(float((found.logits(clips) - expected).abs().max()))
        kept = {
            node.name
            for node in network.graph.node
            if node.op_type == "Conv" and not node.input[1].endswith("DequantizeLinear_Output")
        }
        assert kept == layers
    assert sizes[0] < sizes[1] < 0.7 * full.complexity()["bytes"]["network"]
    assert 0 < max(differences) < 0.2 * float(expected.max() - expected.min())
    with pytest.raises(UserError, match=r"in_c\.1.*did you mean in_c\.0"):
        quantize_int8(made.network, inputs, ["in_c.1"])


def test_int8_weights_are_the_nearest_multiples(exported):
    made = exported("small")
    with torch.no_grad():
        inputs = made.model.features(clips_of(made.model, 4)).numpy()
    graph = quantize_int8(made.network, inputs).graph
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    original = {c.name: onnx.numpy_helper.to_array(c) for c in made.network.graph.initializer}
    name = "stage2.block1.conv1.weight"
    scale = np.abs(original[name]).reshape(len(original[name]), -1).max(1) / 127
    np.testing.assert_allclose(constants[f"{name}_scale"], scale, rtol=1e-2)
    stored = constants[f"{name}_quantized"] * constants[f"{name}_scale"][:, None, None, None]
    error = np.abs(stored - original[name]).reshape(len(scale), -1).max(1)
    assert (error <= 0.51 * constants[f"{name}_scale"]).all()


class Broken(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(40 * 51, 3)

    def forward(self, x):
        if self.kind == "operator":
            x = (
                x
                * torch.linalg.eigvalsh(x[:, 0, :40, :40] @ x[:, 0, :40, :40].mT)[:, :1, None, None]
            )
        if self.kind == "batch":
            x = x.reshape(2, 1, 40, 51)
        if self.kind == "data" and x.sum() > 0:
            x = -x
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("kind", ["operator", "batch", "data"])
def test_networks_that_cannot_be_exported(kind):
    with pytest.raises(UserError, match=r"cannot be exported to ONNX: .") as caught:
        export_network(randomised(Broken(kind)), (1, 40, 51))
    assert "\n" not in str(caught.value)
