"""What int8 costs layer by layer, against the test's own quantisation, and which layers are kept."""

import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from scipy.special import log_softmax, rel_entr, softmax

import shards
from cpprune.export import sensitivity
from cpprune.export.network import export_network
from cpprune.export.quantize import int8_layers, quantize_int8
from cpprune.export.sensitivity import (
    LayerCost,
    Quantiser,
    Sensitivity,
    keep_costliest,
    measure_sensitivity,
)
from cpprune.models import artifact
from shards.errors import UserError

SPOILT = "stage2.block1.conv1"


@pytest.fixture(scope="module")
def model(tiny_run):
    return artifact.load(tiny_run / "model")


@pytest.fixture(scope="module")
def network(model):
    return export_network(model.network, model.input_shape)


@pytest.fixture(scope="module")
def spoilt(network):
    """The network with a layer whose rounding is coarse: one large weight in each of its channels."""
    twin = onnx.ModelProto()
    twin.CopyFrom(network)
    for constant in twin.graph.initializer:
        if constant.name == f"{SPOILT}.weight":
            values = onnx.numpy_helper.to_array(constant).copy()
            values[:, 0, 0, 0] = 40 * abs(values).max()
            constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
    return twin


@pytest.fixture(scope="module")
def val(scenes):
    return shards.open_dataset(scenes).split("val")


@pytest.fixture(scope="module")
def inputs(model, scenes):
    clips = shards.open_dataset(scenes).split("train").fetch(range(32))
    return features(model, clips)


def features(model, clips):
    with torch.no_grad():
        return model.features(torch.from_numpy(clips)).numpy()


def logits_of(network, x):
    data = network.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"features": x})[0].astype("f8")


class Once:
    """All the inputs, once."""

    def __init__(self, inputs):
        self.left = [{"features": inputs}]

    def get_next(self):
        return self.left.pop() if self.left else None


def alone_in_int8(network, inputs, name, path):
    twin = onnx.ModelProto()
    twin.CopyFrom(network)
    quantize_static(
        twin,
        path,
        Once(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_quantize=[name],
    )
    return onnx.load(path)


@pytest.mark.slow
def test_each_layer_alone(spoilt, model, inputs, val, tmp_path):
    with Quantiser(spoilt, inputs) as quantiser:
        found = measure_sensitivity(quantiser, ("first",), model, val)
        assert measure_sensitivity(quantiser, ("first",), model, val) == found
    layers = set(int8_layers(spoilt)) - {"in_c.0"}
    costs = {cost.layer: cost for cost in found.layers}
    assert costs.keys() == layers
    assert found.layers[0].layer == SPOILT
    apart = [cost.divergence for cost in found.layers]
    assert apart == sorted(apart, reverse=True)
    x, labels = features(model, val.fetch(range(len(val)))), val.labels
    before = logits_of(spoilt, x)
    assert found.accuracy == (before.argmax(1) == labels).mean()
    assert found.log_loss == pytest.approx(-log_softmax(before, 1)[range(len(val)), labels].mean())
    for name in (SPOILT, "feed_forward.0"):
        after = logits_of(alone_in_int8(spoilt, inputs, name, tmp_path / "a.onnx"), x)
        cost = costs[name]
        apart = rel_entr(softmax(before, 1), softmax(after, 1)).sum(1).mean()
        assert cost.divergence == pytest.approx(apart, rel=1e-3)
        lost = (before.argmax(1) == labels).mean() - (after.argmax(1) == labels).mean()
        assert cost.accuracy_drop == pytest.approx(lost)
        loss = -log_softmax(after, 1)[range(len(val)), labels].mean()
        assert cost.log_loss_rise == pytest.approx(loss - found.log_loss, abs=1e-6)


@pytest.mark.parametrize("integer", [False, True])
def test_ranges_that_were_kept_change_nothing(network, inputs, integer):
    with Quantiser(network, inputs, integer=integer) as quantiser:
        quantiser.quantised(only="feed_forward.0")
        assert quantiser.quantised(["first"]) == quantize_int8(network, inputs, integer=integer)


def test_what_is_kept_is_what_costs_most(spoilt, model, inputs, val):
    with Quantiser(spoilt, inputs) as quantiser:
        found = measure_sensitivity(quantiser, ("first",), model, val)
        kept = keep_costliest(quantiser, ("first",), model, found, val, 0.0)
        network = quantiser.quantised(kept.layers)
    names = [cost.layer for cost in found.layers]
    assert kept.layers == ["in_c.0", *names[: len(kept.layers) - 1]]
    x = features(model, val.fetch(range(len(val))))
    assert kept.accuracy_float == (logits_of(spoilt, x).argmax(1) == val.labels).mean()
    assert kept.accuracy_int8 == (logits_of(network, x).argmax(1) == val.labels).mean()
    assert kept.accuracy_int8 >= kept.accuracy_float
    assert (kept.split, kept.clips) == ("val", 22)


class Counted:
    """A quantiser of three layers, whose networks are what is kept in float32."""

    network = "float32"

    def quantised(self, keep_float):
        return tuple(keep_float)


COSTS = [
    LayerCost(layer=name, divergence=1.0, accuracy_drop=0.0, log_loss_rise=0.0) for name in "bca"
]
RIGHT = {"float32": 20, (): 10, ("b",): 17, ("b", "c"): 19}


def kept(monkeypatch, max_drop, costs=COSTS):
    monkeypatch.setattr(sensitivity, "_right", lambda network, *_: RIGHT[network])
    monkeypatch.setattr(sensitivity, "layers_kept", lambda *_: [])
    found = Sensitivity(split="val", clips=22, accuracy=1.0, log_loss=0.0, layers=costs)
    return lambda val: keep_costliest(Counted(), (), None, found, val, max_drop)


@pytest.mark.parametrize(
    ("max_drop", "layers"), [(12 / 22, []), (3 / 22, ["b"]), (2.9 / 22, ["b", "c"])]
)
def test_no_more_is_kept_than_is_needed(monkeypatch, val, max_drop, layers):
    found = kept(monkeypatch, max_drop)(val)
    assert found.layers == layers
    assert (found.accuracy_float, found.accuracy_int8) == (20 / 22, RIGHT[tuple(layers)] / 22)


def test_a_limit_that_cannot_be_met(monkeypatch, val):
    with pytest.raises(UserError, match=r"--max-drop 0: with a alone in int8, 0\.0455 of the acc"):
        kept(monkeypatch, 0.0)(val)
    with pytest.raises(UserError, match="--keep-float: keeps all layers"):
        kept(monkeypatch, 0.0, [])(val)
    with pytest.raises(UserError, match="split val has no clips"):
        kept(monkeypatch, 0.0)(val.take([]))


# --- the command --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(cli, tiny_run, scenes, tmp_path):
    out = tmp_path / "a.onnx"
    options = ("--precision", "int8", "--data", scenes, "--calibration-clips", 32)
    command = ("export", tiny_run / "model", "--out", out, *options, "--max-drop", 0.1)
    found = cli(*command, "--keep-float", "none", "--json").json
    own = cli("evaluate", out, "--data", scenes, "--split", "val", "--json").json
    model = cli("evaluate", tiny_run / "model", "--data", scenes, "--split", "val", "--json").json
    assert found["kept"]["accuracy_int8"] == pytest.approx(own["accuracy"])
    assert found["kept"]["accuracy_float"] == pytest.approx(model["accuracy"])
    assert own["accuracy"] >= model["accuracy"] - 0.1
    names = [cost["layer"] for cost in found["sensitivity"]["layers"]]
    assert found["kept"]["layers"] == names[: len(found["kept"]["layers"])]


@pytest.mark.slow
def test_the_text_and_c(cli, tiny_run, scenes, tmp_path):
    options = ("--precision", "int8", "--data", scenes, "--calibration-clips", 32)
    command = ("export", tiny_run / "model", "--to", "c", "--out", tmp_path / "c", *options)
    text = cli(*command, "--sensitivity", "--max-drop", 0.5).out
    assert "layer alone in int8" in text
    assert "In float32: in_c.0. Accuracy on the 22 clips of val: " in text


@pytest.mark.slow
def test_a_limit_that_the_command_cannot_meet(cli, tiny_run, scenes, tmp_path, monkeypatch):
    counts = iter(range(1000, 0, -1))
    monkeypatch.setattr(sensitivity, "_right", lambda *_: next(counts))
    options = ("--precision", "int8", "--data", scenes, "--calibration-clips", 8)
    out = tmp_path / "a.onnx"
    outcome = cli("export", tiny_run / "model", "--out", out, *options, "--max-drop", 0)
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1].startswith("cpprune: error: --max-drop 0: with ")
    assert not out.exists()
