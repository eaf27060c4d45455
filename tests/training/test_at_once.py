"""Casts of all weights at once, beside autocast's: the same bits."""

import copy

import pytest
import torch
from torch import nn

import cpprune
from cpprune.training.at_once import AtOnce


class Standardised(nn.Conv2d):
    """Computes with its weights before they are cast."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), None, padding=1)


def convolutions():
    norms = nn.BatchNorm2d(6), nn.BatchNorm2d(6, momentum=None), nn.BatchNorm2d(6)
    first, frozen, own = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), Standardised(6, 6, 3, bias=False)
    frozen.weight.requires_grad_(False)
    norms[2].eval()
    net = nn.Sequential(first, norms[0], nn.ReLU(), frozen, norms[1], own, norms[2], nn.ReLU())
    return nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def cp_resnet():
    return cpprune.build_model("cp_resnet", widths=[4, 6, 8])


def trained(call, network, dtype):
    """Loss, gradients and buffers of two steps."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for step in range(2):
        x = torch.randn(3, 1, 32, 24, generator=generator)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            logits = call(x.contiguous(memory_format=torch.channels_last))
        logits.float().square().sum().backward()
        found[f"logits {step}"] = logits.detach()
    found |= {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    return found | dict(network.named_buffers())


@pytest.mark.parametrize("make", [convolutions, cp_resnet])
@pytest.mark.parametrize("dtype", [torch.bfloat16, None], ids=str)
def test_nothing_but_the_number_of_kernels_changes(make, dtype):
    torch.manual_seed(0)
    network = make().to(memory_format=torch.channels_last)
    twin = copy.deepcopy(network)
    call = AtOnce(twin, dtype)
    expected, found = trained(network, network, dtype), trained(call, twin, dtype)
    assert bool(call._weights) == (dtype is not None)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype, name
        assert torch.equal(tensor, found[name]), name


def test_only_weights_that_are_cast_anyway_are_cast():
    network = convolutions()
    call = AtOnce(network, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        call(torch.randn(2, 1, 9, 9))
    assert [*call._weights] == ["0.weight", "0.bias", "3.bias", "10.weight", "10.bias"]
    assert [*call._counters] == ["1.num_batches_tracked"]
    assert all(not module._forward_pre_hooks for module in network.modules())


class Careful(nn.Module):
    """Computes its last layer in float32, calls one layer twice and another never; two share weights."""

    def __init__(self):
        super().__init__()
        self.twice, self.unused, self.last = (nn.Linear(3, 3) for _ in range(3))
        self.norm = nn.BatchNorm1d(3)
        self.one, self.same = (nn.Linear(3, 3, bias=False) for _ in range(2))
        self.same.weight = self.one.weight

    def forward(self, x):
        x = self.norm(self.twice(self.norm(self.twice(self.same(self.one(x))))))
        with torch.autocast("cpu", enabled=False):
            return self.last(x.float())


def test_a_layer_outside_of_autocast_stays_there_and_an_unused_one_gets_no_gradient():
    network = Careful()
    call = AtOnce(network, torch.bfloat16)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            logits = call(torch.randn(4, 3))
        assert logits.dtype == torch.float32
        logits.sum().backward()
    assert [*call._weights] == ["twice.weight", "twice.bias"]
    assert network.unused.weight.grad is None
    assert network.norm.num_batches_tracked == 4
