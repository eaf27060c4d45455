"""Operations: worked out by hand, counted by torch's own counter, and shown where MACs differ."""

import pytest
import torch
from networks import Smooth
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import cpprune
from cpprune.evaluation.complexity import complexity, count_macs
from cpprune.evaluation.operations import count_operations, differ, products


class Of(nn.Module):
    """A network that computes a function of its input and some weights."""

    def __init__(self, function, *weights) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([torch.randn(shape) for shape in weights])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


class Recurrent(nn.Module):
    """A recurrent layer over the frames of [1, F, T]."""

    def __init__(self, kind, **settings) -> None:
        super().__init__()
        self.layer = kind(6, 5, batch_first=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, 0].transpose(1, 2))[0]


class Attention(nn.Module):
    """Self-attention over the frames of [1, F, T]."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, 0].transpose(1, 2)
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(x, x, x, need_weights=False)[0]
        return self.layer(x)


def heads(x: Tensor) -> Tensor:
    """Two heads of 3 channels, 7 frames: [1, 2, 7, 3]."""
    return x.view(1, 2, 3, 7).transpose(2, 3)


SHAPE = (1, 6, 7)  # one channel, six bins, seven frames
# Beside each network: how many products it takes, factor by factor.
CASES = {
    "functional convolution": (Of(functional.conv2d, (4, 1, 3, 3)), 4 * (4 * 5) * 9),
    "transposed convolution": (
        Of(lambda x, w: functional.conv_transpose2d(x, w, stride=2), (1, 4, 3, 3)),
        (6 * 7) * 4 * 9,
    ),
    "weight norm": (parametrizations.weight_norm(nn.Conv2d(1, 4, 3)), 4 * (4 * 5) * 9),
    "grouped convolution": (
        nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, groups=2)),
        4 * 42 + 8 * 20 * 2 * 9,
    ),
    "linear over feature maps": (nn.Linear(7, 3), 6 * 7 * 3),
    "linear over channels last": (
        nn.Sequential(Of(lambda x: x.transpose(2, 3)), nn.Linear(6, 3)),
        7 * 6 * 3,
    ),
    "einsum": (Of(lambda x, w: torch.einsum("bcft,fg->bcgt", x, w), (6, 3)), 6 * 7 * 3),
    "matrix times vector": (Of(lambda x, w: x[0, 0] @ w, (7,)), 6 * 7),
    "batches of matrices": (Of(lambda x: x @ x.transpose(2, 3)), 6 * 7 * 6),
    "inner product": (Of(lambda x, w: x[0, 0, 0] @ w, (7,)), 7),
    "sum of products": (
        Of(lambda x: torch.addbmm(torch.zeros(6, 6), x[0], x[0].mT)),
        6 * 7 * 6,
    ),
    "LSTM": (Recurrent(nn.LSTM), 7 * 4 * 5 * (6 + 5)),
    "LSTM, two layers, both ways": (
        Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        2 * 7 * 4 * 5 * ((6 + 5) + (10 + 5)),
    ),
    "GRU": (Recurrent(nn.GRU), 7 * 3 * 5 * (6 + 5)),
    "dot-product attention": (
        Of(lambda x: functional.scaled_dot_product_attention(heads(x), heads(x), heads(x))),
        2 * (2 * 7 * 7 * 3),
    ),
    "causal attention": (
        Of(
            lambda x: functional.scaled_dot_product_attention(
                heads(x), heads(x), heads(x), is_causal=True
            )
        ),
        2 * (2 * 7 * 7 * 3),
    ),
    "multi-head attention": (
        Attention(nn.MultiheadAttention(6, 2, batch_first=True)),
        4 * 7 * 6 * 6 + 2 * (2 * 7 * 7 * 3),
    ),
    "transformer layer": (
        Attention(nn.TransformerEncoderLayer(6, 2, 10, batch_first=True)),
        4 * 7 * 6 * 6 + 2 * (2 * 7 * 7 * 3) + 2 * 7 * 6 * 10,
    ),
    "elementwise product": (Of(lambda x, w: x * w, (6, 7)), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_are_the_products_that_are_computed(name):
    network, expected = CASES[name]
    assert count_operations(network, SHAPE) == expected


@pytest.mark.parametrize(
    ("network", "shape", "biases"),
    [
        (cpprune.build_model("cp_resnet", widths=[4, 6, 5], groups=[1, 2, 1]), (1, 64, 32), 0),
        (cpprune.build_model("cp_mobile"), (1, 64, 32), 0),
        # Convolutions add their bias to 15 × 7 and 13 × 5 places; once is among the parameters.
        (Smooth(10), (1, 64, 32), 8 * (15 * 7 - 1) + (8 + 12 + 8) * (13 * 5 - 1)),
    ],
    ids=["cp_resnet", "cp_mobile", "smooth"],
)
def test_operations_are_half_of_what_torch_counts(network, shape, biases):
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, *shape))
    operations = count_operations(network, shape)
    assert 2 * operations == counter.get_total_flops()
    # Beside them, torchinfo counts what norms and biases have.
    more = count_macs(network, shape) - operations
    assert 0 < more == sum(p.numel() for p in network.parameters() if p.ndim == 1) + biases
    assert differ(operations + more, operations) == (biases > 0)


def test_what_macs_leave_out_is_seen():
    network = Of(functional.conv2d, (4, 1, 3, 3))
    found = complexity(network, SHAPE)
    assert (found["macs"], found["operations"]) == (0, 720)
    assert differ(found["macs"], found["operations"])
    assert not differ(0, 0)
    assert not differ(995, 1000)
    assert differ(989, 1000)
    assert differ(1011, 1000)


def test_counting_changes_nothing():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).double()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fast, state = torch.backends.mha.get_fastpath_enabled(), torch.get_rng_state()
    assert [p.operator for p in products(network, SHAPE)] == ["convolution"]
    assert network.training
    assert all(torch.equal(before[n], tensor) for n, tensor in network.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() is fast
    assert torch.equal(torch.get_rng_state(), state)
