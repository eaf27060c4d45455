"""CP-ResNet: a residual network whose receptive field is set by one number, rho.

Source: Koutini et al., "Receptive Field Regularization Techniques for Audio Classification and
Tagging with Deep Convolutional Neural Networks", 2021, in the small variant of the CP-JKU submission
to DCASE 2022 task 1. State-dict keys are those of that code, so its weights load.

Shapes: B batch, C channels, F mel bins (or image rows), T frames (or image columns), K classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.models.registry import register
from shards.files.documents import typed

STAGES = ("stage1", "stage2", "stage3")

# Pooling before block i of a stage, and after its last block.
_POOL_BEFORE: dict[tuple[str, int], tuple[int, int]] = {
    ("stage1", 0): (2, 2),
    ("stage1", 1): (2, 1),
}
_POOL_AFTER: dict[str, tuple[int, int]] = {"stage1": (2, 1)}


def kernel_sizes(rho: int) -> dict[str, list[tuple[int, int]]]:
    """Return, per stage, the kernel sizes (k1, k2) of its first and its later blocks at this rho.

    rho 4 gives a receptive field of 91 mel bins × 39 frames; each step of rho changes one kernel.
    """
    e = rho - 4
    return {
        "stage1": [(3, 1), (3 - 2 * (-e > 2), 3 - 2 * (-e > 1))],
        "stage2": [
            (3 - 2 * (-e > 0), 1 + 2 * (e > 0)),
            (1 + 2 * (e > 1), 1 + 2 * (e > 2)),
        ],
        "stage3": [
            (1 + 2 * (e > 3), 1 + 2 * (e > 4)),
            (1 + 2 * (e > 5), 1 + 2 * (e > 6)),
        ],
    }


class Block(nn.Module):
    """conv(k1) – BN – ReLU – conv(k2) – BN, plus the shortcut, then ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        k1: int,
        k2: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, k1, padding=k1 // 3, bias=False, groups=groups
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, k2, padding=k2 // 3, bias=False, groups=groups
        )
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels:
            self.shortcut.add_module(
                "conv", nn.Conv2d(in_channels, out_channels, 1, bias=False, groups=groups)
            )
            self.shortcut.add_module("bn", nn.BatchNorm2d(out_channels))

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, in_channels, F, T] → [B, out_channels, F, T]."""
        y = functional.relu(self.bn1(self.conv1(x_BCFT)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x_BCFT))


@register("cp_resnet")
class CPResNet(nn.Module):
    """CP-ResNet with any width in every stage.

    Args:
        num_classes: K, the number of classes.
        base_channels: width of stage 1.
        channels_multiplier: stages 2 and 3 are this much, and its square, wider.
        widths: instead of the two above, the widths of the three stages.
        rho: receptive-field parameter, see `kernel_sizes`.
        blocks: residual blocks in each stage.
        groups: groups of the block convolutions in each stage.

    Raises:
        ValueError: numbers that do not fit together; the message names the key.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        base_channels: int = 32,
        channels_multiplier: float = 2,
        widths: Sequence[int] | None = None,
        rho: int = 4,
        blocks: Sequence[int] = (2, 2, 2),
        groups: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        if len(blocks) != 3 or min(blocks) < 1 or len(groups) != 3 or min(groups) < 1:
            raise ValueError(
                f"model.blocks and model.groups take three positive numbers, one a stage: got "
                f"{list(blocks)} and {list(groups)}"
            )
        stage_widths = _stage_widths(widths, base_channels, channels_multiplier)
        kernels = kernel_sizes(rho)
        channels = stage_widths[0]
        self.in_c = nn.Sequential(
            nn.Conv2d(1, channels, 5, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Hardswish(),
        )
        for stage, width, num_blocks, num_groups in zip(
            STAGES, stage_widths, blocks, groups, strict=True
        ):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(num_blocks):
                if (stage, i) in _POOL_BEFORE:
                    layers[f"maxpool{i + 1}"] = nn.MaxPool2d(_POOL_BEFORE[stage, i])
                k1, k2 = kernels[stage][min(i, 1)]
                _check_groups(f"{stage}.block{i + 1}", num_groups, channels, width)
                layers[f"block{i + 1}"] = Block(channels, width, k1, k2, num_groups)
                channels = width
            if stage in _POOL_AFTER:
                layers[f"maxpool{num_blocks + 1}"] = nn.MaxPool2d(_POOL_AFTER[stage])
            self.add_module(stage, nn.Sequential(layers))
        self.feed_forward = nn.Sequential(
            nn.Conv2d(channels, num_classes, 1, bias=False),
            nn.BatchNorm2d(num_classes),
            nn.AdaptiveAvgPool2d(1),
        )
        self._initialise()

    @staticmethod
    def complete_config(
        config: Mapping[str, object], tensors: Mapping[str, Tensor]
    ) -> dict[str, object]:
        """Return the config with stage widths; older imported models have none in `model.json`."""
        if config.keys() & {"base_channels", "widths"}:
            return dict(config)
        groups = typed(config.get("groups", [1]), list[int])
        return {**config, "widths": imported_widths(tensors, groups)}

    @property
    def classifier(self) -> nn.Module:
        """The layer whose outputs are the classes: never pruned."""
        return self.feed_forward[0]

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, 1, F, T] → logits [B, K]."""
        x = self.in_c(x_BCFT)
        for stage in STAGES:
            x = self.get_submodule(stage)(x)
        return torch.flatten(self.feed_forward(x), 1)

    def _initialise(self) -> None:
        # Fixup-like: every block starts near the identity (conv2 is zero), so depth does not matter.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.feed_forward[0].weight)  # type: ignore[arg-type]
        all_blocks = [m for m in self.modules() if isinstance(m, Block)]
        for block in all_blocks:
            std = math.sqrt(2 / _fan_out(block.conv1)) / math.sqrt(len(all_blocks))
            nn.init.normal_(block.conv1.weight, 0, std)
            nn.init.zeros_(block.conv2.weight)
            if len(block.shortcut):
                conv = block.shortcut.get_submodule("conv")
                assert isinstance(conv, nn.Conv2d)
                nn.init.normal_(conv.weight, 0, math.sqrt(2 / _fan_out(conv)))


def _fan_out(conv: nn.Conv2d) -> int:
    return conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels


def _stage_widths(
    widths: Sequence[int] | None, base: int, multiplier: float
) -> tuple[int, int, int]:
    if widths is None:
        resolved = [base * multiplier**i for i in range(3)]
        if any(width != int(width) for width in resolved):
            raise ValueError(
                f"model.channels_multiplier={multiplier}: {base} channels times it and its square must "
                "be whole numbers"
            )
    else:
        resolved = list(widths)
    if len(resolved) != 3 or min(resolved) < 1:
        raise ValueError(
            f"model.widths takes three positive numbers, one a stage: got {list(resolved)}"
        )
    first, second, third = (int(width) for width in resolved)
    return first, second, third


def imported_widths(tensors: Mapping[str, Tensor], groups: Sequence[int]) -> list[int]:
    """Return stage widths of a CP-ResNet that has the same shortcuts as a state dict.

    They are those of the tensors, unless pruning made both sides of a shortcut equally wide: then one
    side is wider here, and `cpprune.models.resize.fit` narrows it.

    Args:
        tensors: state dict of a CP-ResNet.
        groups: of the block convolutions in each stage.
    """
    widths = [len(tensors["in_c.0.weight"])]
    for stage in STAGES[1:]:
        width = widths[-1]
        if f"{stage}.block1.shortcut.conv.weight" in tensors:
            width = len(tensors[f"{stage}.block1.conv2.weight"])
            if width == widths[-1]:
                width += math.lcm(*groups)
        widths.append(width)
    return widths


def _check_groups(block: str, groups: int, *widths: int) -> None:
    if any(width % groups for width in widths):
        raise ValueError(f"model.groups: {block} has widths {widths}, not multiples of {groups}")
