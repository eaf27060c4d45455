"""Fake quantisation against a reference in float64: values, gradients, ranges and folding."""

import numpy as np
import pytest
import torch

from cpprune.models.fake_quantize import (
    MOMENTUM,
    FakeQuantizer,
    Folded,
    activation_scale,
    fold,
    weight_scale,
)

GENERATOR = torch.Generator().manual_seed(0)


def reference(x, scale, zero_point, lowest, highest):
    """Return x rounded to what integers can hold, and where its gradient passes; in float64."""
    steps = np.round(x / scale) + zero_point
    inside = (steps >= lowest) & (steps <= highest)
    return (steps.clip(lowest, highest) - zero_point) * scale, inside.astype(np.float64)


def quantizer_with(low, high):
    fake = FakeQuantizer({}, [], 1).eval()
    fake.ranges[0] = torch.tensor([low, high])
    return fake


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 2.0), (-4.0, 0.0), (-0.3, 0.31)])
def test_activations_and_their_gradient(low, high):
    x = torch.empty(4, 50).uniform_(2 * low - 0.1, 2 * high + 0.1, generator=GENERATOR)
    x.requires_grad_()
    found, scale = quantizer_with(low, high).activation(x, 0)
    (weights := torch.randn(x.shape, generator=GENERATOR)).mul(found).sum().backward()
    # float32 numbers near a tie may be rounded either way
    exact = (high - low) / 255
    zero_point = np.clip(np.round(-128 - low / exact), -128, 127)
    values, inside = reference(x.detach().double().numpy(), exact, zero_point, -128, 127)
    assert scale.item() == pytest.approx(exact)
    off = np.abs(found.detach().numpy() - values)
    assert (off > 1e-5).mean() < 0.01
    assert (off < 1.01 * exact).all()
    same = np.isclose(x.grad.numpy(), weights.numpy() * inside)
    assert same.mean() > 0.99
    assert 0.2 < inside.mean() < 0.9
    assert found.unique().numel() <= 256


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 2.0), (-4.0, 0.0), (0.0, 0.0)])
def test_zero_stays_zero(low, high):
    assert quantizer_with(low, high).activation(torch.zeros(3), 0)[0].tolist() == [0, 0, 0]
    assert activation_scale(torch.tensor([low, high]))[1].dtype == torch.int32


def test_weights_have_a_scale_for_each_channel_and_a_gradient_of_one():
    scales = torch.tensor([0.01, 1.0, 30.0]).view(3, 1, 1, 1)
    weight = (torch.randn(3, 2, 3, 3, generator=GENERATOR) * scales).requires_grad_()
    bias = torch.randn(3, generator=GENERATOR)
    found, own = FakeQuantizer({}, [], 0).weights("layer", weight, bias, torch.tensor(0.05))
    exact = weight.detach().double().numpy()
    scale = np.abs(exact).max((1, 2, 3)) / 127
    values, _ = reference(exact, scale.reshape(3, 1, 1, 1), 0, -127, 127)
    np.testing.assert_allclose(found.detach().numpy(), values, atol=1e-5)
    unit = scale * np.float64(np.float32(0.05))
    np.testing.assert_allclose(own, np.round(bias.double().numpy() / unit) * unit, rtol=1e-5)
    found.sum().backward()
    assert (weight.grad == 1).all()


def test_int32_holds_every_bias():
    weight, bias = torch.zeros(2, 4), torch.tensor([3.0, -5.0])
    scale = weight_scale(weight, bias, torch.tensor(1e-4))
    assert (bias.double() / (scale.double() * 1e-4)).abs().max() < 2**31 - 1
    _, own = FakeQuantizer({}, [], 0).weights("layer", weight, bias, torch.tensor(1e-4))
    torch.testing.assert_close(own, bias)


def test_ranges_are_a_moving_average_that_begins_with_the_first_batch():
    fake = FakeQuantizer({}, [], 2).train()
    expected = None
    for step in range(5):
        x = torch.randn(64, generator=GENERATOR) * (step + 1) + 1
        fake.activation(x, 1)
        seen = np.array([min(x.min().item(), 0), max(x.max().item(), 0)])
        expected = seen if expected is None else expected + MOMENTUM * (seen - expected)
        np.testing.assert_allclose(fake.ranges[1], expected, rtol=1e-5)
    before = fake.ranges.clone()
    fake.activation(torch.empty(0, 3), 1)  # a rank without rows
    fake.eval().activation(100 * x, 1)
    np.testing.assert_allclose(fake.ranges[1], before[1] * (1 - MOMENTUM), rtol=1e-5)
    assert fake.ranges[0].tolist() == [0, 0]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_a_folded_layer_does_both(affine, biased):
    layer = torch.nn.Conv2d(3, 5, 3, bias=biased)
    norm = torch.nn.BatchNorm2d(5, affine=affine).eval()
    norm.running_mean.normal_(generator=GENERATOR)
    norm.running_var.uniform_(0.5, 2, generator=GENERATOR)
    if affine:
        torch.nn.init.uniform_(norm.weight, 0.5, 2, GENERATOR)
        torch.nn.init.normal_(norm.bias, generator=GENERATOR)
    names = ("running_mean", "running_var", *(("weight", "bias") if affine else (None, None)))
    tensors = {**norm.state_dict(), **dict(norm.named_parameters())}
    weight, bias = fold(layer.weight, layer.bias, Folded(*names, norm.eps), tensors)
    x = torch.randn(2, 3, 8, 8, generator=GENERATOR).double()
    expected = norm.double()(layer.double()(x))
    found = torch.nn.functional.conv2d(x, weight.double(), bias.double())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
