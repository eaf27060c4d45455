"""Networks whose every channel is another."""

from collections.abc import Callable

import pytest
from networks import randomised
from torch import nn

import cpprune

# Layers whose output channels hang together in CP-ResNet, by the layers that come after them; worked
# out by hand from the network's additions, not asked of any tool.
#   outputs: convolutions and norms that make the channels; inputs: convolutions that read them.
GROUPS: list[tuple[list[str], list[str], list[str]]] = [
    (
        ["in_c.0", "stage1.block1.conv2", "stage1.block2.conv2"],
        ["in_c.1", "stage1.block1.bn2", "stage1.block2.bn2"],
        [
            "stage1.block1.conv1",
            "stage1.block2.conv1",
            "stage2.block1.conv1",
            "stage2.block1.shortcut.conv",
        ],
    ),
    (
        ["stage2.block1.conv2", "stage2.block1.shortcut.conv", "stage2.block2.conv2"],
        ["stage2.block1.bn2", "stage2.block1.shortcut.bn", "stage2.block2.bn2"],
        ["stage2.block2.conv1", "stage3.block1.conv1", "stage3.block1.shortcut.conv"],
    ),
    (
        ["stage3.block1.conv2", "stage3.block1.shortcut.conv", "stage3.block2.conv2"],
        ["stage3.block1.bn2", "stage3.block1.shortcut.bn", "stage3.block2.bn2"],
        ["stage3.block2.conv1", "feed_forward.0"],
    ),
    *(
        ([f"{block}.conv1"], [f"{block}.bn1"], [f"{block}.conv2"])
        for block in (f"stage{s}.block{b}" for s in (1, 2, 3) for b in (1, 2))
    ),
]


@pytest.fixture(scope="session")
def groups() -> list[tuple[list[str], list[str], list[str]]]:
    """For each group of channels of CP-ResNet: convolutions out, norms, convolutions in."""
    return GROUPS


@pytest.fixture(scope="session")
def make_network() -> Callable[..., nn.Module]:
    """Builds CP-ResNet "big" (or what is asked for) with random weights and statistics."""

    def make(seed: int = 0, **config: object) -> nn.Module:
        return randomised(cpprune.build_model("cp_resnet", **config), seed)

    return make
