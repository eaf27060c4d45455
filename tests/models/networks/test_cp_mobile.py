"""CP-Mobile against an implementation of its own here: tensors of the state dict, and functions."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cpprune
from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.models.config import ModelConfig
from cpprune.models.networks.cp_mobile import make_divisible


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(
                0, math.sqrt(1 / (tensor[0].numel() if tensor.ndim > 1 else 4)), generator=generator
            )
    return network


def reference(
    state: Mapping[str, Tensor], x: Tensor, strides: Mapping[int, tuple[int, int]]
) -> Tensor:
    def conv_norm(conv: str, norm: str, x: Tensor, stride: tuple[int, int] = (1, 1)) -> Tensor:
        weight = state[f"{conv}.weight"].double()
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        mean, var = state[f"{norm}.running_mean"].double(), state[f"{norm}.running_var"].double()
        scale = state[f"{norm}.weight"].double() / (var + 1e-5).sqrt()
        shift = state[f"{norm}.bias"].double() - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    x = x.double()
    for i in (0, 1):
        x = F.relu(conv_norm(f"in_c.{i}.0", f"in_c.{i}.1", x, (2, 2)))
    for stage, number in ((1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6)):
        name = f"stages.s{stage}.b{number}.block"
        stride = strides.get(number, (1, 1))
        y = F.relu(conv_norm(f"{name}.0.0", f"{name}.0.1", x))
        y = F.relu(conv_norm(f"{name}.1.0", f"{name}.1.1", y, stride))
        y = conv_norm(f"{name}.2.0", f"{name}.2.1", y)
        if y.shape[1] == x.shape[1]:
            y = y + (x if stride == (1, 1) else F.avg_pool2d(x, 3, stride, padding=1))
        if f"stages.s{stage}.b{number}.after_block_norm.gamma" in state:
            gamma, beta = (
                state[f"stages.s{stage}.b{number}.after_block_norm.{key}"].double()
                for key in ("gamma", "beta")
            )
            norm = y.square().sum((2, 3), keepdim=True).sqrt()
            y = y + gamma * y * norm / (norm.mean(1, keepdim=True) + 1e-6) + beta
        x = F.relu(y)
    return conv_norm("feed_forward.0", "feed_forward.1", x).mean((2, 3))


@pytest.mark.parametrize(
    ("settings", "strides"),
    [
        ({}, {3: (1, 2), 4: (2, 1)}),
        ({"base_channels": 16, "channels_multiplier": 1}, {3: (1, 2), 4: (2, 1)}),
        ({"base_channels": 8, "variant": "cpjku23"}, {2: (2, 2), 4: (2, 1)}),
    ],
    ids=str,
)
def test_logits_are_those_of_the_reference(
    settings: dict[str, float], strides: dict[int, tuple[int, int]]
) -> None:
    network = randomised(cpprune.build_model("cp_mobile", num_classes=4, **settings)).eval()
    x = torch.randn(3, 1, 64, 33, generator=torch.Generator().manual_seed(1))
    expected = reference(network.state_dict(), x, strides)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(network(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_it_is_the_baseline() -> None:
    network = cpprune.build_model("cp_mobile")
    assert count_parameters(network) == 61_148
    assert count_macs(network, (1, 256, 65)) == 29_419_156
    state = network.state_dict()
    assert state["in_c.0.0.weight"].shape == (8, 1, 3, 3)
    assert state["stages.s1.b1.block.0.0.weight"].shape == (64, 32, 1, 1)
    assert state["stages.s3.b6.block.2.0.weight"].shape == (104, 120, 1, 1)
    assert state["feed_forward.0.weight"].shape == (10, 104, 1, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 8), (32, 32), (57.6, 56), (103.68, 104), (67.2, 64), (12, 16), (11.9, 16)],
)
def test_multiples_of_eight(value: float, expected: int) -> None:
    candidates = range(8, 200, 8)
    nearest = min(candidates, key=lambda n: (abs(n - value), -n))
    assert make_divisible(value) == expected
    assert expected == (nearest if nearest >= 0.9 * value else nearest + 8)


def test_first_weights() -> None:
    torch.manual_seed(0)
    for name, tensor in cpprune.build_model("cp_mobile", base_channels=64).state_dict().items():
        if tensor.ndim == 4:
            # Torch's fan_out does not divide by the groups of a depthwise convolution.
            fan_out = tensor.shape[0] * tensor.shape[2] * tensor.shape[3]
            error = 4 / math.sqrt(2 * tensor.numel())
            assert abs(float(tensor.std()) / math.sqrt(2 / fan_out) - 1) < error, name
        elif name.endswith(("weight", "running_var")):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        else:
            assert not tensor.any(), name


def test_each_family_has_its_settings() -> None:
    config = ModelConfig(name="cp_mobile").network_config()
    own = {"base_channels": 32, "channels_multiplier": 1.8, "expansion": 2.1}
    assert config == {**own, "variant": "dcase24"}
    config = ModelConfig(channels_multiplier=1).network_config()
    assert config["channels_multiplier"] == 1
    assert ModelConfig().network_config() == {
        "base_channels": 32,
        "channels_multiplier": 2,
        "widths": None,
        "rho": 4,
        "blocks": [2, 2, 2],
        "groups": [1, 1, 1],
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "cp_mobile", "rho": 6}, "model.rho=6: cp_mobile has no such setting"),
        ({"name": "cp_mobile", "widths": [4, 5, 6]}, "model.widths=.*cp_mobile has no such"),
        ({"expansion": 3.0}, "model.expansion=3.0: cp_resnet has no such setting"),
        ({"name": "cp_mobile", "expansion": 0.0}, "model.expansion=0.0: must be above 0"),
        ({"arguments": {"width": 3}}, "model.arguments=.*cp_resnet has no such setting"),
    ],
)
def test_what_a_family_does_not_have_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**wrong)
    with pytest.raises(
        ValueError, match=r"model\.arguments\.variant='tiny': choose one of dcase24"
    ):
        cpprune.build_model("cp_mobile", variant="tiny")
    with pytest.raises(ValueError, match="cp_mobile takes at least 4"):
        cpprune.build_model("cp_mobile", base_channels=3)
