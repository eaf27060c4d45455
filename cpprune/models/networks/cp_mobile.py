"""CP-Mobile: inverted bottlenecks, the baseline network of DCASE 2024 task 1.

Source: Schmid et al., "Distilling the Knowledge of Transformers and CNNs with CP-Mobile", DCASE 2023
workshop. State-dict keys are those of the baseline, so its weights load.

Shapes: B batch, C channels, F mel bins (or image rows), T frames (or image columns), K classes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.models.registry import register

BLOCKS = (3, 2, 1)
STRIDES = {3: (1, 2), 4: (2, 1)}  # by number of the block; 1 elsewhere


def make_divisible(value: float, divisor: int = 8) -> int:
    """Return the nearest multiple, at least one, that is not below 90 % of the value.

    Source: Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if activation else []))


class InvertedBottleneck(nn.Module):
    """1×1 expansion – depthwise 3×3 – 1×1 projection, plus the shortcut if widths are equal; ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: tuple[int, int], expansion: float
    ) -> None:
        super().__init__()
        wide = make_divisible(in_channels * expansion)
        self.block = nn.Sequential(
            _convolution(in_channels, wide),
            _convolution(wide, wide, 3, stride, groups=wide),
            _convolution(wide, out_channels, activation=False),
        )
        self.has_shortcut = in_channels == out_channels
        strided = self.has_shortcut and stride != (1, 1)
        self.shortcut = nn.AvgPool2d(3, stride, padding=1) if strided else nn.Identity()

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, in_channels, F, T] → [B, out_channels, F / stride, T / stride]."""
        y = self.block(x_BCFT)
        if self.has_shortcut:
            y = y + self.shortcut(x_BCFT)
        return functional.relu(y)


@register("cp_mobile")
class CPMobile(nn.Module):
    """CP-Mobile of three stages with three, two and one blocks.

    Args:
        num_classes: K, the number of classes.
        base_channels: width of the stem and of stage 1.
        channels_multiplier: stages 2 and 3 are this much, and its square, wider (to multiples of 8).
        expansion: inside, a block is this much wider than its input (to multiples of 8).

    Raises:
        ValueError: fewer than four channels.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        base_channels: int = 32,
        channels_multiplier: float = 1.8,
        expansion: float = 2.1,
    ) -> None:
        super().__init__()
        if base_channels < 4:
            raise ValueError(f"model.base_channels={base_channels}: cp_mobile takes at least 4")
        channels = base_channels
        self.in_c = nn.Sequential(
            _convolution(1, channels // 4, 3, 2), _convolution(channels // 4, channels, 3, 2)
        )
        self.stages = nn.Sequential()
        number = 0
        for index, count in enumerate(BLOCKS):
            width = make_divisible(base_channels * channels_multiplier**index)
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for _ in range(count):
                number += 1
                stride = STRIDES.get(number, (1, 1))
                blocks[f"b{number}"] = InvertedBottleneck(channels, width, stride, expansion)
                channels = width
            self.stages.add_module(f"s{index + 1}", nn.Sequential(blocks))
        self.feed_forward = nn.Sequential(
            nn.Conv2d(channels, num_classes, 1, bias=False),
            nn.BatchNorm2d(num_classes),
            nn.AdaptiveAvgPool2d(1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    @property
    def classifier(self) -> nn.Module:
        """The layer whose outputs are the classes."""
        return self.feed_forward[0]

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, 1, F, T] → logits [B, K]."""
        return torch.flatten(self.feed_forward(self.stages(self.in_c(x_BCFT))), 1)
