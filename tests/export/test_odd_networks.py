"""Networks that share, mirror, pad and stop early: what is exported gives torch's logits."""

import pytest
import torch
from export_jobs import clips_of, job_of
from export_models import make_model
from marks import slow
from torch import nn
from torch.nn import functional

from cpprune.export.integer_operators import with_integer_operators
from cpprune.export.network import export_network
from cpprune.export.qdq import export_quantized
from cpprune.export.quantize import quantize_int8
from cpprune.export.sensitivity import _log_prob
from cpprune.export.target import targets
from cpprune.models.quantized import calibrate, quantize


class Twice(nn.Module):
    """Calls a layer twice, on inputs of other ranges."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.twice.bias.copy_(torch.tensor([1.0, -1.0, 2.0, 0.5]))
            self.twice.weight.mul_(5)

    def forward(self, x):
        return self.last(self.twice(self.twice(torch.relu(self.first(x))))).mean((2, 3))


class Mirrored(nn.Module):
    """Adds a value to its own transpose."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(x + x.transpose(2, 3)).mean((2, 3))


class CutOff(nn.Module):
    """Averages windows of which the last lie half outside."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 4, padding=1), nn.Conv2d(4, 4, 1)
        self.pool, self.last = nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(4, 3, 14)

    def forward(self, x):
        return self.last(self.pool(self.second(torch.relu(self.first(x))))).flatten(1)


class Largest(nn.Module):
    """Takes the largest of a layer's outputs, which no layer reads."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.last(torch.relu(self.first(x))).amax((2, 3))


class TwoReaders(nn.Module):
    """Concatenates what one layer reads after ReLU and another as it is."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.positive, self.all = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = torch.cat([self.left(x), self.right(x)], 1)
        y = torch.cat([self.positive(functional.relu(y)), self.all(y)], 1)
        return self.last(y).mean((2, 3))


class Squeeze(nn.Module):
    """Removes the last two dimensions."""

    def forward(self, x):
        return x.squeeze(3).squeeze(2)


@pytest.mark.parametrize(
    ("network", "target", "precision"),
    [
        (Twice, "onnx", "int8"),
        (Twice, "c", "int8"),
        (Mirrored, "c", "fp32"),
        (CutOff, "onnx", "int8"),
        slow(Largest, "executorch", "int8"),
        slow(TwoReaders, "executorch", "int8"),
    ],
)
def test_logits_are_torchs(network, target, precision):
    torch.manual_seed(0)
    model = make_model(network(), None)
    made = targets()[target].make(job_of(model, None, precision, run=True))
    clips = clips_of(model, 8, seed=3)
    expected, found = model.logits(clips), made.exported.logits(clips)
    part = 1e-5 if precision == "fp32" else 0.05
    torch.testing.assert_close(found, expected, atol=part * float(expected.abs().max()), rtol=0)


def test_a_linear_layer_alone_in_integers():
    """As --sensitivity computes it for C."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 3))
    model = make_model(network, None)
    x = model.features(clips_of(model, 8)).numpy()
    whole = export_network(network, model.input_shape)
    layer = next(node.name for node in whole.graph.node if node.op_type == "Gemm")
    alone = quantize_int8(whole, x, (), integer=True, only=layer)
    difference = abs(_log_prob(alone, x) - _log_prob(whole, x)).max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize("target", ["onnx", "c", slow("executorch"), slow("tflite")])
@pytest.mark.parametrize("reshape", [nn.Flatten(), nn.Unflatten(1, (2, 4)), Squeeze()])
def test_dropout_of_what_was_reshaped(reshape, target):
    """In training it makes values larger, so before and after it the scale is another."""
    torch.manual_seed(0)
    head = [reshape, nn.Dropout(), nn.Flatten(), nn.Linear(8, 3)]
    pool = nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Conv2d(4, 8, 1), nn.ReLU(), *head
    )
    model = make_model(network, None)
    quantize(model.network, model.input_shape)
    x = model.features(clips_of(model, 64))
    calibrate(model.network, [x])
    model.network.train()
    for _ in range(50):
        model.network(x)
    model.network.eval()
    made = targets()[target].make(job_of(model, None, "int8", calibration=None, run=True))
    clips = clips_of(model, 32, seed=3)
    expected, found = model.logits(clips), made.exported.logits(clips)
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


class Concatenation(nn.Module):
    """Concatenates two layers' outputs, and takes all channels, as GhostNet does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.cat([self.left(x), self.right(x)], 1)[:, :8]).mean((2, 3))


def test_a_concatenation_takes_integers_in_c():
    torch.manual_seed(0)
    model = make_model(Concatenation(), None)
    quantize(model.network, model.input_shape)
    calibrate(model.network, [model.features(clips_of(model, 16))])
    graph = with_integer_operators(export_quantized(model.network, model.input_shape)).graph
    operators = [node.op_type for node in graph.node]
    assert "QLinearConcat" in operators
    # The first layer stays in float32, and the logits are averages of float32 numbers.
    assert operators.count("QuantizeLinear") == operators.count("DequantizeLinear") == 1
    made = targets()["c"].make(job_of(model, None, "int8", calibration=None, run=True))
    clips = clips_of(model, 8, seed=3)
    expected, found = model.logits(clips), made.exported.logits(clips)
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.abs().max()), rtol=0)
