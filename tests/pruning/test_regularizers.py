"""Penalties before a cut, against sums over channels written out here."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cpprune.pruning.config import PruneConfig
from cpprune.pruning.regularizers import Penalty

SHAPE = (1, 64, 32)
BEGIN = torch.tensor(0.0)  # the first epoch
Groups = list[tuple[list[str], list[str], list[str]]]
Make = Callable[..., nn.Module]


def penalty(network: nn.Module, kind: str, until: int = 10) -> Penalty:
    config = PruneConfig(ratio=0.5, start_epoch=1, sparsity=kind, sparsity_strength=0.5)
    return Penalty(network, SHAPE, config, until)


def squares_of(network: nn.Module, group: tuple[list[str], list[str], list[str]]) -> torch.Tensor:
    """Return the sum of squares of all weights of each channel of a group, by hand."""
    outputs, norms, inputs = group
    parameters = dict(network.named_parameters())
    total = torch.zeros(len(parameters[f"{outputs[0]}.weight"]))
    for layer in outputs:
        total = total + parameters[f"{layer}.weight"].square().sum((1, 2, 3))
    for layer in norms:
        total = total + parameters[f"{layer}.weight"].square()
        total = total + parameters[f"{layer}.bias"].square()
    for layer in inputs:
        total = total + parameters[f"{layer}.weight"].square().sum((0, 2, 3))
    return total


def test_slimming_is_the_sum_of_the_scales_that_can_be_cut(make_network: Make) -> None:
    network = make_network(widths=[4, 5, 6])
    expected = sum(
        module.weight.detach().abs().sum().item()
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name != "feed_forward.1"
    )
    found = penalty(network, "slimming")(BEGIN)
    assert found.item() == pytest.approx(0.5 * expected, rel=1e-6)
    found.backward()
    scale = network.get_parameter("stage2.block1.bn1.weight")
    assert torch.equal(scale.grad, 0.5 * scale.detach().sign())
    assert network.get_parameter("feed_forward.1.weight").grad is None


@pytest.mark.parametrize(("kind", "epoch"), [("group_norm", 0), ("growing", 3), ("growing", 25)])
def test_the_weaker_a_channel_the_more_it_is_pulled(
    make_network: Make, groups: Groups, kind: str, epoch: int
) -> None:
    network = make_network(widths=[4, 5, 6])
    expected = 0.0
    pulls = {}
    for group in groups:
        squares = squares_of(network, group).detach().double()
        norm = squares.sqrt()
        weakness = (norm.max() - norm) / (norm.max() - norm.min())
        grown = {3: 0.4, 25: 1.0}.get(epoch)
        pull = weakness * grown if grown else 2 ** (4 * weakness)
        pulls[group[0][0]] = pull
        expected += 0.5 * float((pull * squares).sum())
    found = penalty(network, kind)(torch.tensor(float(epoch)))
    assert found.item() == pytest.approx(0.5 * expected, rel=1e-5)
    found.backward()
    # The pull does not depend on the weights as far as the gradient is concerned.
    weight = network.get_parameter("stage1.block1.bn1.weight")
    expected_gradient = 0.5 * pulls["stage1.block1.conv1"] * weight.detach()
    torch.testing.assert_close(weight.grad.double(), expected_gradient.double(), rtol=1e-4, atol=0)


def test_equal_channels_are_pulled_alike(make_network: Make) -> None:
    network = make_network(widths=[4, 5, 6])
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    for kind in ("group_norm", "growing"):
        value = penalty(network, kind)(BEGIN)
        assert torch.isfinite(value)
        value.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_grouped_convolutions(make_network: Make) -> None:
    """Every weight that a cut takes away is in the penalty once, also where blocks are cut alike."""
    network = make_network(widths=[4, 8, 8], groups=[1, 2, 1])
    pulled = penalty(network, "group_norm")
    pulled(BEGIN).backward()
    untouched = {name for name, p in network.named_parameters() if p.grad is None}
    # All but what makes the classes' own outputs.
    assert untouched == {"feed_forward.1.weight", "feed_forward.1.bias"}
