"""CP-Mobile: inverted bottlenecks, the baseline network of DCASE 2024 task 1.

Source: Schmid et al., "Distilling the Knowledge of Transformers and CNNs with CP-Mobile", DCASE 2023
workshop. State-dict keys are those of the baseline and of that workshop's code, so their weights load.

Shapes: B batch, C channels, F mel bins (or image rows), T frames (or image columns), K classes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.models.layers import conv_norm
from cpprune.models.registry import register
from cpprune.settings.choices import wrong_choice

BLOCKS = (3, 2, 1)
# By number of the block; 1 elsewhere.
STRIDES = {"dcase24": {3: (1, 2), 4: (2, 1)}, "cpjku23": {2: (2, 2), 4: (2, 1)}}


def make_divisible(value: float, divisor: int = 8) -> int:
    """Return the nearest multiple, at least one, that is not below 90 % of the value.

    Source: Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor


class GlobalResponseNorm(nn.Module):
    """γ · x · ‖x‖ / mean ‖x‖ + β + x; norms over F and T, their mean over C.

    Source: Woo et al., "ConvNeXt V2", CVPR 2023, here with one γ and one β for all channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, C, F, T] → the same shape."""
        norm: Tensor = torch.linalg.vector_norm(x_BCFT, dim=(2, 3), keepdim=True)
        relative = norm / (norm.mean(1, keepdim=True) + 1e-6)
        y: Tensor = self.gamma * (x_BCFT * relative) + self.beta + x_BCFT
        return y


class InvertedBottleneck(nn.Module):
    """1×1 expansion – depthwise 3×3 – 1×1 projection, plus the shortcut if widths are equal; ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, int],
        expansion: float,
        response_norm: bool,
    ) -> None:
        super().__init__()
        wide = make_divisible(in_channels * expansion)
        self.block = nn.Sequential(
            conv_norm(in_channels, wide),
            conv_norm(wide, wide, 3, stride, groups=wide),
            conv_norm(wide, out_channels, relu=False),
        )
        self.has_shortcut = in_channels == out_channels
        strided = self.has_shortcut and stride != (1, 1)
        self.shortcut = nn.AvgPool2d(3, stride, padding=1) if strided else nn.Identity()
        self.after_block_norm = GlobalResponseNorm() if response_norm else nn.Identity()

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, in_channels, F, T] → [B, out_channels, F / stride, T / stride]."""
        y = self.block(x_BCFT)
        if self.has_shortcut:
            y = y + self.shortcut(x_BCFT)
        return functional.relu(self.after_block_norm(y))


@register("cp_mobile")
class CPMobile(nn.Module):
    """CP-Mobile of three stages with three, two and one blocks.

    Args:
        num_classes: K, the number of classes.
        base_channels: width of the stem and of stage 1.
        channels_multiplier: stages 2 and 3 are this much, and its square, wider (to multiples of 8).
        expansion: inside, a block is this much wider than its input (to multiples of 8).
        variant: dcase24, or cpjku23: other strides, and global response normalisation after each block,
            which keeps the channels between blocks from being pruned.

    Raises:
        ValueError: fewer than four channels, or no such variant.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        base_channels: int = 32,
        channels_multiplier: float = 1.8,
        expansion: float = 2.1,
        variant: str = "dcase24",
    ) -> None:
        super().__init__()
        if base_channels < 4:
            raise ValueError(f"model.base_channels={base_channels}: cp_mobile takes at least 4")
        if variant not in STRIDES:
            raise ValueError(wrong_choice("model.arguments.variant", variant, tuple(STRIDES)))
        channels = base_channels
        self.in_c = nn.Sequential(
            conv_norm(1, channels // 4, 3, 2), conv_norm(channels // 4, channels, 3, 2)
        )
        self.stages = nn.Sequential()
        number = 0
        for index, count in enumerate(BLOCKS):
            width = make_divisible(base_channels * channels_multiplier**index)
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for _ in range(count):
                number += 1
                stride = STRIDES[variant].get(number, (1, 1))
                blocks[f"b{number}"] = InvertedBottleneck(
                    channels, width, stride, expansion, response_norm=variant == "cpjku23"
                )
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
