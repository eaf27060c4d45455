"""CP-ResNet against an implementation of its own here: tensors of the state dict, and functions."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from networks import TEACHER, randomised
from torch import Tensor, nn
from torch.nn import functional as F

import cpprune
from cpprune.evaluation.complexity import count_parameters, receptive_field
from cpprune.models.config import ModelConfig
from cpprune.models.networks.cp_resnet import CPResNet

GAIN = nn.init.calculate_gain("relu")  # so that activations stay as large from layer to layer


def kernels(rho: int) -> dict[tuple[int, int], tuple[int, int]]:
    """(stage, block) → (k1, k2); tables of the values from which a kernel is 3, or 1."""
    return {
        (1, 1): (3, 1),
        (1, 2): (3 if rho >= 2 else 1, 3 if rho >= 3 else 1),
        (2, 1): (3 if rho >= 4 else 1, 3 if rho >= 5 else 1),
        (2, 2): (3 if rho >= 6 else 1, 3 if rho >= 7 else 1),
        (3, 1): (3 if rho >= 8 else 1, 3 if rho >= 9 else 1),
        (3, 2): (3 if rho >= 10 else 1, 3 if rho >= 11 else 1),
    }


def reference(
    state: Mapping[str, Tensor], x: Tensor, rho: int, *, training: bool, groups: tuple[int, ...]
) -> Tensor:
    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"].double()
        padding = {5: 1, 3: 1, 1: 0}[weight.shape[-1]]
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"].double(), state[f"{name}.running_var"].double()
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        scale = state[f"{name}.weight"].double() / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + (
            state[f"{name}.bias"].double()[:, None, None]
        )

    def block(name: str, x: Tensor, groups: int) -> Tensor:
        y = F.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x, groups=groups)))
        y = norm(f"{name}.bn2", conv(f"{name}.conv2", y, groups=groups))
        if f"{name}.shortcut.conv.weight" in state:
            x = norm(f"{name}.shortcut.bn", conv(f"{name}.shortcut.conv", x, groups=groups))
        return F.relu(x + y)

    x = norm("in_c.1", conv("in_c.0", x.double(), stride=2))
    x = x * (x + 3).clamp(0, 6) / 6
    x = F.max_pool2d(x, 2)
    for stage, number in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)):
        name = f"stage{stage}.block{number}"
        if f"{name}.conv1.weight" in state:
            sizes = [state[f"{name}.conv{i}.weight"].shape[-1] for i in (1, 2)]
            assert tuple(sizes) == kernels(rho)[stage, number]
            x = block(name, x, groups[stage - 1])
        if stage == 1:
            x = F.max_pool2d(x, (2, 1))
    return norm("feed_forward.1", conv("feed_forward.0", x)).mean((2, 3))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("config", "rho"),
    [
        *(({"widths": [6, 7, 9]}, rho) for rho in range(1, 13)),
        ({"base_channels": 5, "channels_multiplier": 1}, 4),
        ({"base_channels": 3, "channels_multiplier": 2}, 4),
        (TEACHER, 8),
        ({"widths": [8, 12, 16], "groups": [2, 4, 2]}, 6),
    ],
)
def test_logits_are_those_of_the_reference(
    config: dict[str, Any], rho: int, training: bool
) -> None:
    network = cpprune.build_model("cp_resnet", num_classes=4, **{"rho": rho} | config)
    randomised(network, gain=GAIN)
    network.train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = torch.randn(3, 1, 80, 44, generator=torch.Generator().manual_seed(rho))
    groups = tuple(config.get("groups", (1, 1, 1)))
    expected = reference(before, x, rho, training=training, groups=groups)
    largest = float(expected.abs().max())
    assert largest > 0.1
    logits = network(x)
    assert logits.shape == (3, 4)
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5 * max(1, largest))
    changed = any((network.state_dict()[name] != value).any() for name, value in before.items())
    assert changed == training


def test_batch_statistics_are_averaged() -> None:
    network = randomised(cpprune.build_model("cp_resnet", widths=[3, 4, 5]), gain=GAIN)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = torch.randn(4, 1, 64, 32, generator=torch.Generator().manual_seed(1))
    y = F.conv2d(x.double(), before["in_c.0.weight"].double(), stride=2, padding=1)
    network.train()(x)
    for name, value in (("mean", y.mean((0, 2, 3))), ("var", y.var((0, 2, 3), correction=1))):
        expected = 0.9 * before[f"in_c.1.running_{name}"].double() + 0.1 * value
        actual = network.state_dict()[f"in_c.1.running_{name}"].double()
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({"base_channels": 32, "channels_multiplier": 1}, 47_028),
        ({"base_channels": 32, "channels_multiplier": 2}, 131_316),
        ({}, 131_316),
        ({"widths": [32, 64, 128]}, 131_316),
        ({"widths": [18, 37, 75]}, 44_784),
        ({"widths": [18, 39, 77]}, 47_028),
        (TEACHER, 127_684),
    ],
)
def test_parameters(config: dict[str, Any], parameters: int) -> None:
    network = cpprune.build_model("cp_resnet", **config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert count_parameters(network) == parameters


def test_state_dict_keys_are_the_seeds() -> None:
    layers = [("in_c.0", "in_c.1")]
    for stage in (1, 2, 3):
        for block in (1, 2):
            name = f"stage{stage}.block{block}"
            layers += [(f"{name}.conv1", f"{name}.bn1"), (f"{name}.conv2", f"{name}.bn2")]
            if block == 1 and stage > 1:
                layers.append((f"{name}.shortcut.conv", f"{name}.shortcut.bn"))
    layers.append(("feed_forward.0", "feed_forward.1"))
    expected = {f"{conv}.weight" for conv, _ in layers}
    for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        expected |= {f"{norm}.{kind}" for _, norm in layers}
    network = cpprune.build_model("cp_resnet", base_channels=4, channels_multiplier=2)
    assert set(network.state_dict()) == expected
    narrow = cpprune.build_model("cp_resnet", base_channels=4, channels_multiplier=1)
    assert set(narrow.state_dict()) == {key for key in expected if "shortcut" not in key}


@pytest.mark.parametrize(("blocks", "number"), [([2, 2, 2], 6), ([2, 1, 1], 4), ([1, 1, 1], 3)])
def test_first_weights(blocks: list[int], number: int) -> None:
    torch.manual_seed(0)
    network = cpprune.build_model("cp_resnet", widths=[64, 96, 128], blocks=blocks)

    def close(weight: Tensor, std: float) -> None:
        # Four standard errors of a mean and of a standard deviation.
        assert abs(float(weight.mean())) < 4 * std / math.sqrt(weight.numel())
        assert abs(float(weight.std()) / std - 1) < 4 / math.sqrt(2 * weight.numel())

    seen = 0
    for name, tensor in network.state_dict().items():
        if name == "feed_forward.0.weight" or name.endswith("conv2.weight"):
            assert not tensor.any(), name
        elif name == "in_c.0.weight":
            close(tensor, math.sqrt(2 / 25))
        elif name.endswith("conv1.weight"):
            out, _, height, width = tensor.shape
            close(tensor, number**-0.5 * math.sqrt(2 / (height * width * out)))
            seen += 1
        elif name.endswith("shortcut.conv.weight"):
            close(tensor, math.sqrt(2 / tensor.shape[0]))
            seen += 1
        elif name.endswith(("bias", "running_mean", "num_batches_tracked")):
            assert not tensor.any(), name
        else:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
    assert seen == number + 2
    # So that a fresh network says nothing.
    assert not network.eval()(torch.randn(2, 1, 64, 32)).any()


def measured_field(network: CPResNet) -> tuple[int, int]:
    """How many rows and columns of the input one place before the last pooling looks at."""
    network = network.double().eval()
    for parameter in network.parameters():  # nothing cancels, nothing is rectified
        parameter.data.fill_(0.1)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):  # which hides all but the largest
                setattr(module, name, nn.AvgPool2d(child.kernel_size))
    x = torch.ones(1, 1, 512, 256, dtype=torch.float64, requires_grad=True)
    y = network.in_c(x)
    for stage in (network.stage1, network.stage2, network.stage3):
        y = stage(y)
    y = network.feed_forward[0](y)  # type: ignore[operator]
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    assert x.grad is not None
    seen = x.grad[0, 0] != 0
    return int(seen.any(1).sum()), int(seen.any(0).sum())


@pytest.mark.parametrize("rho", [2, 3, 4, 5, 6, 8])
def test_receptive_field(rho: int) -> None:
    network = cpprune.build_model("cp_resnet", widths=[2, 2, 3], rho=rho)
    assert isinstance(network, CPResNet)
    field = receptive_field(network)
    assert field == measured_field(network)
    if rho == 4:
        assert field == (91, 39)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widths": [3, 4]}, r"three positive numbers, one a stage: got \[3, 4\]"),
        ({"widths": [3, 0, 5]}, r"three positive numbers, one a stage: got \[3, 0, 5\]"),
        ({"base_channels": 3, "channels_multiplier": 1.5}, "multiplier=1.5: 3 channels times it"),
        ({"blocks": [2, 2]}, r"three positive numbers, one a stage: got \[2, 2\]"),
        ({"blocks": [2, 0, 2]}, r"three positive numbers.*\[2, 0, 2\]"),
        ({"groups": [1, 0, 1]}, r"three positive numbers.*\[1, 0, 1\]"),
        ({"widths": [4, 9, 8], "groups": [1, 2, 1]}, r"stage2.block1 has widths .*multiples of 2"),
    ],
)
def test_a_wrong_config_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cpprune.build_model("cp_resnet", **config)


def test_an_unknown_family_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'cp_resnt': choose one of .*did you mean cp_resnet"):
        cpprune.build_model("cp_resnt")
    with pytest.raises(ValueError, match=r"'cp_resnt': choose one of .*did you mean cp_resnet"):
        ModelConfig(name="cp_resnt")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base_channels": 0}, "model.base_channels=0.*at least 1"),
        ({"channels_multiplier": 0}, "model.channels_multiplier=0.*at least 1"),
        ({"widths": [3, 4]}, r"model.widths=\[3, 4\]: give three positive numbers"),
        ({"widths": [3, 4, 0]}, r"model.widths=\[3, 4, 0\]: give three positive numbers"),
        ({"rho": 0}, "model.rho=0: must be from 1 to 16"),
        ({"rho": 17}, "model.rho=17: must be from 1 to 16"),
    ],
)
def test_a_wrong_model_config_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**wrong)


def test_a_model_config_builds_its_network() -> None:
    config = ModelConfig(widths=[18, 37, 75], rho=5)
    network = cpprune.build_model(config.name, num_classes=3, **config.network_config())
    assert len(network.state_dict()["stage3.block2.conv2.weight"]) == 75
    assert network.state_dict()["stage2.block1.conv2.weight"].shape[-1] == 3
    assert network(torch.zeros(1, 1, 64, 32)).shape == (1, 3)
