"""What a network costs: the recipe's numbers, and a count of multiplications made here."""

import json
from typing import Any

import pytest
import torch
from torch import nn

import cpprune
from cpprune.evaluation.complexity import complexity, count_macs, count_parameters, receptive_field

TEACHER = {"rho": 8, "blocks": [2, 1, 1], "groups": [1, 2, 1], "widths": [32, 64, 92]}
SMALL = {"base_channels": 32, "channels_multiplier": 1}


@pytest.mark.parametrize(
    ("config", "shape", "macs", "exactly"),
    [
        ({}, (1, 256, 44), 29_238_580, True),
        ({"widths": [18, 37, 75]}, (1, 256, 44), 10_141_890, True),
        (SMALL, (1, 256, 44), 16_810_000, False),
        ({}, (1, 128, 100), 33_460_000, False),
        (TEACHER, (1, 256, 44), 28_840_000, False),
    ],
)
def test_macs(config: dict[str, Any], shape: tuple[int, ...], macs: int, exactly: bool) -> None:
    counted = count_macs(cpprune.build_model("cp_resnet", **config), shape)
    assert counted == macs if exactly else abs(counted - macs) <= 5_000


@pytest.mark.parametrize("config", [SMALL, TEACHER, {"widths": [3, 4, 5]}])
def test_macs_are_those_counted_layer_by_layer(config: dict[str, Any]) -> None:
    network = cpprune.build_model("cp_resnet", **config)
    counted = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            taps = module.kernel_size[0] * module.kernel_size[1]
            counted += output.numel() * taps * module.in_channels // module.groups
        else:  # a scale and an offset a channel, as torchinfo counts them
            counted += 2 * output.shape[1]

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(count)
    network.eval()(torch.zeros(1, 1, 100, 60))
    assert counted == count_macs(cpprune.build_model("cp_resnet", **config), (1, 100, 60))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counting_changes_nothing(dtype: torch.dtype) -> None:
    network = cpprune.build_model("cp_resnet", widths=[3, 4, 5]).to(dtype)
    network.stage1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    macs = count_macs(network, (1, 64, 32))
    assert macs == count_macs(cpprune.build_model("cp_resnet", widths=[3, 4, 5]), (1, 64, 32))
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_buffers_are_no_parameters() -> None:
    assert count_parameters(nn.BatchNorm2d(7)) == 14
    assert count_parameters(nn.Conv2d(3, 5, 3)) == 5 * 3 * 9 + 5


def test_receptive_field_of_unequal_kernels_and_strides() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 1, (5, 3), stride=(2, 1)),
        nn.MaxPool2d((2, 1)),
        nn.Conv2d(1, 1, 3),
        nn.AvgPool2d(2),
    )
    # Rows: 5, +1·2, +2·4, +1·4; columns: 3, +0, +2, +1.
    assert receptive_field(network) == (19, 6)
    assert receptive_field(cpprune.build_model("cp_resnet")) == (91, 39)


@pytest.mark.parametrize(
    ("config", "size", "fits", "macs_fit"),
    [
        ({}, [525_264, 262_632, 131_316], [False, False, False], True),
        (SMALL, [188_112, 94_056, 47_028], [False, True, True], True),
        ({"widths": [64, 128, 128]}, None, None, False),
    ],
)
def test_limits_of_dcase(
    config: dict[str, Any], size: list[int] | None, fits: list[bool] | None, macs_fit: bool
) -> None:
    network = cpprune.build_model("cp_resnet", **config)
    costs = complexity(network, (1, 256, 44))
    assert json.loads(json.dumps(costs)) == costs
    assert costs["parameters"] == sum(p.numel() for p in network.parameters())
    assert costs["receptive_field"] == {"mel_bins": 91, "frames": 39}
    assert costs["limits"]["macs"] == {"limit": 30_000_000, "ok": macs_fit}
    assert costs["limits"]["bytes"]["limit"] == 128_000
    if size is not None and fits is not None:
        names = ["fp32", "fp16", "int8"]
        assert costs["bytes"] == dict(zip(names, size, strict=True))
        assert costs["limits"]["bytes"]["ok"] == dict(zip(names, fits, strict=True))
