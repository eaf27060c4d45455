"""Fake-quantised networks: what is quantised, what is not, and that they can be made float again."""

import copy

import pytest
import torch
from networks import randomised
from torch import nn
from torch.nn import functional

from cpprune.evaluation.complexity import count_macs
from cpprune.models.fake_quantize import activation_scale
from cpprune.models.quantized import Quantization as Described
from cpprune.models.quantized import dequantize, is_quantized, quantize, restore_quantized
from cpprune.models.registry import build_model
from shards.errors import UserError

SHAPE = (1, 64, 32)
FAMILIES = {
    "cp_resnet": {"widths": [6, 8, 10]},
    "cp_mobile": {"base_channels": 8},
    "bc_resnet": {},
    "tf_sepnet": {},
    "cnn_gru": {},
}


class Residual(nn.Module):
    """Two layers and a sum in place; ReLU in place, dropout, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        y = functional.relu(self.norm(self.conv(x)), inplace=True)
        y += x
        y = functional.dropout(self.twice(self.twice(y)), 0.5, self.training)
        logits: torch.Tensor = self.out(y.mean((2, 3)))
        return logits


def trained(network, passes=2):
    """Return the network after a few passes in training mode, in evaluation mode."""
    network.train()
    for seed in range(passes):
        network(torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(seed)))
    return network.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_almost_what_it_was(family):
    network = randomised(build_model(family, num_classes=4, **FAMILIES[family])).eval()
    before = copy.deepcopy(network)
    macs = count_macs(network, SHAPE)
    fake = quantize(network, SHAPE)
    assert len(fake.layers) > 10
    assert all(fake.layers.values()) or family in ("bc_resnet", "cnn_gru", "tf_sepnet")
    assert network.state_dict().keys() - before.state_dict().keys() == {"fake_quantize.ranges"}
    trained(network)
    x = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        found, expected = network(x), before(x)
    assert 0 < (found - expected).abs().max() < 0.15 * expected.abs().max()
    assert count_macs(network, SHAPE) == macs
    twin = copy.deepcopy(before)
    own = network.state_dict()
    ranges = own.pop("fake_quantize.ranges")
    twin.load_state_dict(own)
    restore_quantized(twin, SHAPE, Described(8, ["first"]), ranges)
    with torch.no_grad():
        assert torch.equal(twin(x), found)
    dequantize(network)
    assert not is_quantized(network)
    assert type(network) is type(before)
    with torch.no_grad():
        assert torch.equal(network(x), expected)


def test_what_is_quantised_of_a_residual_network():
    network = randomised(Residual())
    fake = quantize(network, SHAPE, ["first"])
    # `twice` has no weights of one output: it stays in float32.
    assert list(fake.layers) == ["conv", "out"]
    assert fake.layers["conv"].mean == "norm.running_mean"
    # input of conv, its output after ReLU, input of out
    assert len(fake.ranges) == 3
    seen = {}

    def keep(module, args, output):
        seen[module] = output.detach().clone().max().item()

    for module in (network.stem, network.norm):
        module.register_forward_hook(keep)
    trained(network, 1)
    low, high = fake.ranges.unbind(1)
    assert low[0] == 0
    assert high[0] == pytest.approx(seen[network.stem])
    assert low[1] == 0
    assert high[1] == pytest.approx(seen[network.norm])
    assert fake.layers["out"] is None
    network.train()
    assert not network.norm.training
    assert network.stem.training


def test_a_sum_in_place_is_a_sum():
    class Sum(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            self.in_place = in_place
            self.first, self.second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            if self.in_place:
                y += x
            else:
                y = y + x
            logits: torch.Tensor = self.second(y).mean((2, 3))
            return logits

    outputs = []
    for in_place in (True, False):
        network = randomised(Sum(in_place))
        assert len(quantize(network, SHAPE, []).ranges) == 4
        trained(network)
        outputs.append(network(torch.ones(1, *SHAPE)))
    assert torch.equal(*outputs)


class Activated(nn.Module):
    """An activation, perhaps in place, of a value that was read before and is read again after it."""

    def __init__(self, activation, in_place: bool) -> None:
        super().__init__()
        self.activation, self.in_place = activation, in_place
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.third, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        before = self.third(x)
        y = self.activation(x, inplace=self.in_place)
        after = x if self.in_place else y
        logits: torch.Tensor = self.last(before + y + after).mean((2, 3))
        return logits


@pytest.mark.parametrize("name", ["relu", "relu6", "silu", "hardswish"])
def test_an_activation_in_place_is_that_activation(name):
    outputs, ranges = [], []
    for in_place in (False, True):
        network = randomised(Activated(getattr(functional, name), in_place))
        fake = quantize(network, SHAPE, [])
        network.train()
        x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3))
        network(x).square().sum().backward()
        outputs.append(network.eval()(x))
        ranges.append(fake.ranges)
    assert torch.equal(*ranges)
    assert torch.equal(*outputs)


class InPart(nn.Module):
    """Writes into some channels of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        functional.relu(x[:, :2], inplace=True)
        logits: torch.Tensor = self.last(x).mean((2, 3))
        return logits


def test_a_part_that_is_changed_in_place_is_changed_in_the_whole():
    network = randomised(InPart()).eval()
    before = copy.deepcopy(network)
    quantize(network, SHAPE, [])
    trained(network)
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3))
    expected = before(x)
    assert (network(x) - expected).abs().max() < 0.03 * expected.abs().max()


def test_what_is_split_is_read_before_its_normalisation():
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = (
                nn.Conv2d(1, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 3, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            left, right = x.chunk(2, 1)
            return self.last(self.norm(x) + torch.cat([right, left], 1)).mean((2, 3))

    assert quantize(randomised(Split()), SHAPE, []).layers["conv"] is None


def test_a_layer_and_a_pool_read_the_same_integers():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = functional.relu(self.first(x))
            y = self.second(x)
            self.read = functional.avg_pool2d(x, 1)
            return y.mean((2, 3))

    network = randomised(Shared())
    fake = quantize(network, SHAPE, ["first"])
    trained(network)
    network(torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(5)))
    steps = network.read / activation_scale(fake.ranges[0])[0]
    assert steps.amax() > 20
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


def test_outputs_are_on_the_grid_of_the_integers():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 1))
    network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    fake = quantize(network, SHAPE, [])
    trained(network)
    assert len(fake.ranges) == 3  # what max-pooling selects is quantised already
    x = torch.randn(2, *SHAPE)
    scales = (fake.ranges[:, 1] - fake.ranges[:, 0]).double() / 255
    steps = (-128 - fake.ranges[:, 0].double() / scales).round()

    def rounded(t, number):
        q = ((t / scales[number]).round() + steps[number]).clamp(-128, 127)
        return (q - steps[number]) * scales[number]

    def layer(t, module, number):
        w = module.weight.detach().double()
        s = w.flatten(1).abs().amax(1) / 127
        w = (w / s.view(-1, 1, 1, 1)).round() * s.view(-1, 1, 1, 1)
        unit = s * scales[number]
        bias = (module.bias.detach().double() / unit).round() * unit
        return functional.conv2d(t, w, bias)

    y = layer(rounded(x.double(), 0), network[0], 0)
    y = functional.max_pool2d(rounded(y.relu(), 1), 2)
    y = rounded(layer(y, network[3], 1), 2).mean((2, 3))
    with torch.no_grad():
        torch.testing.assert_close(network(x).double(), y, atol=2e-3, rtol=0)


def test_a_network_that_computes_otherwise_from_input_to_input_is_refused():
    class Fickle(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.any() else self.out(self.stem(x).mean((2, 3)))

    network = Fickle()
    quantize(network, SHAPE)
    with pytest.raises(UserError, match="other operations"):
        network(torch.ones(1, *SHAPE))


def test_a_network_without_layers_is_refused():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    with pytest.raises(UserError, match="no convolution or linear layer"):
        quantize(network, SHAPE, [])


@pytest.mark.parametrize(
    ("ranges", "text"),
    [
        (torch.zeros(2, 2), r"is \[2, 2\], not \[3, 2\]"),
        (torch.tensor([[-1, 1], [1, 2], [-1, 1.0]]), "no range around 0"),
        (torch.full((3, 2), torch.nan), "no range around 0"),
    ],
)
def test_ranges_of_another_network_are_refused(ranges, text):
    with pytest.raises(ValueError, match=text):
        restore_quantized(Residual(), SHAPE, Described(8, ["first"]), ranges)


def test_other_bits_and_names_are_refused():
    with pytest.raises(ValueError, match="bits is 4"):
        restore_quantized(Residual(), SHAPE, Described(4, []), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="no such layer"):
        restore_quantized(Residual(), SHAPE, Described(8, ["stemm"]), torch.zeros(3, 2))
