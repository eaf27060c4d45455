"""TF-SepNet against an implementation of its own here: tensors of the state dict, and functions."""

from collections.abc import Mapping

import pytest
import torch
from networks import SHAPE, conv_norm_reference, plan_for, randomised
from torch import Tensor
from torch.nn import functional as F

import cpprune
from cpprune.evaluation.complexity import count_macs, count_parameters


def unit(state: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    return conv_norm_reference(state, name, x, stride).relu()


def residual_norm(x: Tensor) -> Tensor:
    deviation = (x.var((1, 3), keepdim=True) + 1e-5).sqrt()
    return 0.1 * x + (x - x.mean((1, 3), keepdim=True)) / deviation


def block(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    if f"{name}.transition.0.weight" in state:
        x = unit(state, f"{name}.transition", x)
    half = x.shape[1] // 2
    order = [i * half + j for j in range(half) for i in (0, 1)]
    one, other = x[:, order[:half]], x[:, order[half:]]
    y = unit(state, f"{name}.frequency", one).mean(2, keepdim=True)
    z = unit(state, f"{name}.temporal", other).mean(3, keepdim=True)
    y = one + unit(state, f"{name}.frequency_mix", y)
    return torch.cat((y, other + unit(state, f"{name}.temporal_mix", z)), 1)


def reference(state: Mapping[str, Tensor], x: Tensor, depth: int) -> Tensor:
    x = unit(state, "stem.1", unit(state, "stem.0", x.double(), 2), 2)
    x = residual_norm(x)
    for stage, count in enumerate((2, 2, 2, 3)):
        pooled = stage in ((1, 2, 3) if depth == 17 else (1, 2))
        x = F.max_pool2d(x, 2) if pooled else x
        for number in range(count):
            x = block(state, f"stages.{stage}.{number + pooled}", x)
        x = residual_norm(x)
    weight, bias = state["head.weight"].double(), state["head.bias"].double()
    return F.conv2d(x, weight, bias).mean((2, 3))


@pytest.mark.parametrize("depth", [16, 17])
def test_logits_are_those_of_the_reference(depth: int) -> None:
    network = cpprune.build_model("tf_sepnet", num_classes=4, width=8, depth=depth)
    network = randomised(network).eval()
    x = torch.randn(3, 1, 64, 70, generator=torch.Generator().manual_seed(1))
    expected = reference(network.state_dict(), x, depth)
    assert expected.std() > 0.1
    torch.testing.assert_close(network(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_it_is_the_submission_to_dcase_2024() -> None:
    """TF-SepNet-64 of Cai et al.'s report: 126,858 parameters and 29.4196 million MACs."""
    network = cpprune.build_model("tf_sepnet")
    assert count_parameters(network) == 126_858
    assert count_macs(network, (1, 512, 64)) == 29_419_648


def test_no_channel_can_be_removed_without_a_change_of_the_others() -> None:
    network = randomised(cpprune.build_model("tf_sepnet", width=8)).eval()
    plan = plan_for(network, SHAPE)
    assert all(len(group.keep) == group.width for group in plan.groups)


@pytest.mark.parametrize("wrong", [{"width": 6}, {"depth": 18}, {"dropout": -0.5}], ids=str)
def test_a_wrong_number_is_named(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"model.arguments.*{name}={wrong[name]}"):
        cpprune.build_model("tf_sepnet", **wrong)
