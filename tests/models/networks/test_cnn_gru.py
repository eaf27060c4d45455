"""CNN-GRU against an implementation of its own here: tensors of the state dict, and functions."""

from collections.abc import Mapping

import pytest
import torch
from networks import conv_norm_reference, randomised
from torch import Tensor
from torch.nn import functional as F

import cpprune
from cpprune.evaluation.complexity import count_macs, count_parameters


def linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].double().T + state[f"{name}.bias"].double()


def excited(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    scale = linear(state, f"{name}.reduce", x.mean((2, 3))).relu()
    return x * linear(state, f"{name}.expand", scale).sigmoid()[:, :, None, None]


def shuffled(x: Tensor) -> Tensor:
    return torch.cat((x[:, ::2], x[:, 1::2]), 1)


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def gru(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """[B, T, D] → hidden states [B, T, H], step by step."""
    w_in, w_hidden, b_in, b_hidden = (
        state[f"gru.{key}_l0"].double() for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden, states = torch.zeros(len(x), w_hidden.shape[1]).double(), []
    for step in range(x.shape[1]):
        r_in, z_in, n_in = (x[:, step] @ w_in.T + b_in).chunk(3, 1)
        r_h, z_h, n_h = (hidden @ w_hidden.T + b_hidden).chunk(3, 1)
        reset, update = (r_in + r_h).sigmoid(), (z_in + z_h).sigmoid()
        new = (n_in + reset * n_h).tanh()
        hidden = (1 - update) * new + update * hidden
        states.append(hidden)
    return torch.stack(states, 1)


def reference(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    x = shuffled(
        conv_norm_reference(state, "stem.1", conv_norm_reference(state, "stem.0", x.double()))
    )
    x = conv_norm_reference(state, "separable.1", conv_norm_reference(state, "separable.0", x))
    x = excited(state, "separable.3", silu(x))
    branches = {}
    for name, pool in (("maxima", F.max_pool2d), ("means", F.avg_pool2d)):
        y = conv_norm_reference(state, f"{name}.convolutions.0", pool(x, 2))
        y = conv_norm_reference(state, f"{name}.convolutions.1", y)
        y = silu(conv_norm_reference(state, f"{name}.convolutions.2", y, 2))
        branches[name] = excited(state, f"{name}.excitation", y)
    a, b, c, d = state["mixing"].double()
    means, maxima = branches["means"], branches["maxima"]
    one = a * F.avg_pool2d(means, 2) + (1 - a) * F.avg_pool2d(maxima, 2)
    other = b * F.max_pool2d(maxima, 2) + (1 - b) * F.max_pool2d(means, 2)
    x = d * one + (1 - d) * other
    x = shuffled(conv_norm_reference(state, "mix", x) + x)
    x = silu(conv_norm_reference(state, "deep.0", x, (2, 1)))
    x = silu(conv_norm_reference(state, "deep.3", x))
    rows = x.mean(3)
    assert rows.shape[2] == 16
    hidden = gru(state, rows).mean(2)
    return linear(state, "head", silu(c * rows.mean(2) + (1 - c) * hidden))


def test_logits_are_those_of_the_reference() -> None:
    network = cpprune.build_model("cnn_gru", num_classes=4, width=8, middle=5, last=6)
    network = randomised(network).eval()
    x = torch.randn(3, 1, 256, 19, generator=torch.Generator().manual_seed(1))
    expected = reference(network.state_dict(), x)
    assert expected.std() > 0.05
    torch.testing.assert_close(network(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_it_is_the_submission_to_dcase_2025() -> None:
    """Its complexity.json: 116,342 bytes in float16 and 10,902,300 MACs, on one second at 44.1 kHz."""
    network = cpprune.build_model("cnn_gru")
    assert 2 * count_parameters(network) == 116_342
    assert count_macs(network, (1, 256, 33)) == 10_902_300


@pytest.mark.parametrize("wrong", [{"width": 6}, {"middle": 0}, {"last": 0}], ids=str)
def test_a_wrong_number_is_named(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"model.arguments.*{name}={wrong[name]}"):
        cpprune.build_model("cnn_gru", **wrong)
