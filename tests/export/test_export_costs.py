"""Parameters and MACs of exported networks are those of torch, whatever layers they have."""

import copy

import onnx
import pytest
import torch
from export_jobs import clips_of, job_of
from export_models import make_model
from marks import has_wheels
from networks import randomised
from torch import nn

from cpprune.evaluation.complexity import count_parameters
from cpprune.evaluation.operations import count_operations
from cpprune.export.complexity import onnx_complexity
from cpprune.export.network import export_network
from cpprune.export.qdq import export_quantized
from cpprune.export.quantize import quantize_int8, store_fp16
from cpprune.export.target import targets
from cpprune.models.quantized import calibrate, quantize

SHAPE = (1, 28, 28)


class Transposed(nn.Module):
    """A transposed convolution."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 4, 3, 2, 1), nn.ConvTranspose2d(4, 2, 3, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.up(torch.relu(self.down(x))).mean((2, 3)))


class Recurrent(nn.Module):
    """A recurrent layer of both directions."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(28, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.layer(x[:, 0])[0].mean(1))


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.again(torch.relu(self.again(self.first(x)))))
        return self.head(x.mean((2, 3)))


class Sequence(nn.Module):
    """Linear layers over a sequence, with and without a bias, and what is added to it."""

    def __init__(self):
        super().__init__()
        self.first, self.then = nn.Linear(28, 6), nn.Linear(6, 5, bias=False)
        self.head = nn.Linear(5, 3)
        self.register_buffer("place", torch.randn(28, 5))

    def forward(self, x):
        x = self.then(torch.relu(self.first(x[:, 0]))) + self.place
        return self.head(torch.relu(x)).mean(1)


MAKERS = {
    "transposed": Transposed,
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "twice": Twice,
    "sequence": Sequence,
}


def made(name):
    torch.manual_seed(0)
    return make_model(randomised(MAKERS[name]()), None)


def counted(cost):
    return cost["parameters"], cost["macs"]


def of_torch(model):
    return count_parameters(model.network), count_operations(model.network, SHAPE)


@pytest.mark.parametrize("name", MAKERS)
def test_onnx(name):
    model = made(name)
    network = export_network(model.network, SHAPE)
    expected = of_torch(model)
    assert counted(onnx_complexity(network, 0)) == expected
    half = store_fp16(network)
    found = onnx_complexity(half, 0)
    assert counted(found) == expected
    full = onnx_complexity(network, 0)["bytes"]["network"]
    assert full - found["bytes"]["network"] == 2 * expected[0]
    inputs = model.features(clips_of(model, 4)).numpy()
    if (
        name == "twice"
    ):  # int8 stores a layer for each call: the scale of a bias is that of the input
        expected = (expected[0] + 144 + 4, expected[1])
    assert counted(onnx_complexity(quantize_int8(network, inputs), 0)) == expected


@pytest.mark.parametrize("name", ["transposed", "twice", "sequence"])
def test_trained_to_be_quantised(name):
    model = made(name)
    expected = of_torch(model)
    model = copy.copy(model)
    quantize(model.network, SHAPE)
    calibrate(model.network, [model.features(clips_of(model, 4))])
    assert counted(onnx_complexity(export_quantized(model.network, SHAPE), 0)) == expected


def test_a_shape_that_the_standard_does_not_infer():
    """Operators outside of it have shapes that only onnxruntime knows."""
    model = made("twice")
    network = export_network(model.network, SHAPE)
    for node in network.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "QuickGelu", "com.microsoft"
    network.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert counted(onnx_complexity(network, 0)) == of_torch(model)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["c", pytest.param("tflite", marks=has_wheels)])
@pytest.mark.parametrize("name", ["transposed", "twice", "sequence"])
def test_other_targets(name, target):
    model = made(name)
    product = targets()[target].make(job_of(model, "features", trial=True))
    assert counted(product.complexity) == of_torch(model)
