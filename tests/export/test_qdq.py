"""The exported integers against the fake-quantised network, in onnxruntime and in C."""

import numpy as np
import onnx
import pytest
import torch
from export_jobs import clips_of, job_of
from export_models import MAKERS, make_model
from networks import randomised

from cpprune.export.complexity import onnx_complexity
from cpprune.export.integer_operators import with_integer_operators
from cpprune.export.onnx_session import open_session
from cpprune.export.qdq import export_quantized
from cpprune.export.target import targets
from cpprune.models.quantized import quantize
from cpprune.models.registry import build_model

SHAPE = (1, 32, 16)


@pytest.fixture(scope="module")
def made():
    """A fake-quantised network, its ONNX model, 1,000 inputs and their logits."""
    network = randomised(build_model("cp_resnet", num_classes=10, widths=[6, 8, 10]))
    quantize(network.train(), SHAPE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        network(torch.randn(32, *SHAPE, generator=generator))
    network.eval()
    x = torch.randn(1000, *SHAPE, generator=generator)
    with torch.no_grad():
        return network, export_quantized(network, SHAPE), x.numpy(), network(x).numpy()


def kinds(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("integer", [False, True])
def test_the_same_classes(made, integer):
    _, model, x, expected = made
    if integer:
        model = with_integer_operators(model)
        assert kinds(model).count("QLinearConv") == 15
        assert kinds(model).count("QLinearAdd") == 6
        assert kinds(model).count("QuantizeLinear") == 1
    onnx.checker.check_model(model, full_check=not integer)
    (found,) = open_session(model, as_written=True).run(None, {"features": x})
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.999
    # One step of rounding in a feature map is far less than this of a logit.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert np.abs(found - expected).mean() < 1e-3


@pytest.mark.slow
def test_all_layers_without_saturation():
    """Inputs of one size after another: pairs of their products would not fit into 16 bits."""
    network = randomised(build_model("cp_resnet", num_classes=10, widths=[6, 8, 10]))
    quantize(network.train(), SHAPE, keep_float=())
    x = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(0)) / 8 + 3
    network(x)
    with torch.no_grad():
        expected = network.eval()(x).numpy()
    (found,) = open_session(export_quantized(network, SHAPE)).run(None, {"features": x.numpy()})
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_the_scales_are_those_of_training(made):
    network, model, *_ = made
    stored = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    ranges = network.fake_quantize.ranges.double().numpy()
    expected = [
        ((high - low) / 255, np.round(-128 - 255 * low / (high - low))) for low, high in ranges
    ]
    # in the order of the forward pass; what max-pooling selects is quantised once more
    found = [
        tuple(float(stored[name]) for name in node.input[1:])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    ]
    np.testing.assert_allclose(sorted(set(found)), sorted(expected), rtol=1e-6)
    weight = stored["stage1.block1.conv1.weight"]
    assert weight.dtype == np.int8
    assert np.abs(weight).max((1, 2, 3)).tolist() == [127] * 6
    assert stored["stage1.block1.conv1.bias"].dtype == np.int32
    assert stored["in_c.0.weight"].dtype == np.float32


def test_it_counts_as_the_float_network_does(made):
    network, model, *_ = made
    cost = onnx_complexity(model, 0)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    expected = sum(m.weight.numel() + m.out_channels for m in convolutions)
    assert cost["parameters"] == expected
    assert {"in_c.0", "stage3.block2.conv2", "feed_forward.0"} <= {n.name for n in model.graph.node}


@pytest.mark.slow
def test_in_c(made):
    """The C code gives the logits of the integers, as its own test program finds."""
    torch.manual_seed(0)
    network, spec = MAKERS["small"]()
    model = make_model(randomised(network, gain=1.4), spec)
    quantize(model.network.train(), model.input_shape)
    for seed in range(2):
        model.network(model.features(clips_of(model, 8, seed)))
    model.network.eval()
    job = job_of(model, "features", "int8", calibration=None, run=True)
    product = targets()["c"].make(job)
    assert b"qlinear" in product.files["network.c"].lower()
    clips = clips_of(model, 3, seed=7)
    expected = model.logits(clips)
    assert expected.std() > 0.01
    found = product.exported.logits(clips)
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
