"""CP-ResNet: a residual network whose receptive field is set by one number, rho.

Source: Koutini et al., "Receptive Field Regularization Techniques for Audio Classification and
Tagging with Deep Convolutional Neural Networks", 2021, in the small variant of the CP-JKU submission
to DCASE 2022 task 1. State-dict keys are those of that code, so its weights load.

Shapes: B batch, C channels, F mel bins (or image rows), T frames (or image columns), K classes.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        inner: int,
        out_channels: int,
        k1: int,
        k2: int,
        groups: int,
        shortcut: bool,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, k1, padding=k1 // 3, bias=False, groups=groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out_channels, k2, padding=k2 // 3, bias=False, groups=groups)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if shortcut:
            self.shortcut.add_module(
                "conv", nn.Conv2d(in_channels, out_channels, 1, bias=False, groups=groups)
            )
            self.shortcut.add_module("bn", nn.BatchNorm2d(out_channels))

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, in_channels, F, T] → [B, out_channels, F, T]."""
        y = functional.relu(self.bn1(self.conv1(x_BCFT)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x_BCFT))


class CPResNet(nn.Module):
    """CP-ResNet with any width in every layer.

    Args:
        num_classes: K, the number of classes.
        base_channels: width of stage 1.
        channels_multiplier: stages 2 and 3 are this much, and its square, wider.
        widths: instead of the two above, three widths (one a stage), or output channels by name of
            convolution as in `conv_widths`, which is how a pruned network is rebuilt.
        rho: receptive-field parameter, see `kernel_sizes`.
        blocks: residual blocks in each stage.
        groups: groups of the block convolutions in each stage.

    Raises:
        ValueError: widths that do not fit together, named by layer.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        base_channels: int = 32,
        channels_multiplier: int = 2,
        widths: Sequence[int] | Mapping[str, int] | None = None,
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
        width = _resolve_widths(widths, base_channels, channels_multiplier, blocks)
        kernels = kernel_sizes(rho)
        channels = width["in_c.0"]
        self.in_c = nn.Sequential(
            nn.Conv2d(1, channels, 5, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Hardswish(),
        )
        for stage, num_blocks, num_groups in zip(STAGES, blocks, groups, strict=True):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(num_blocks):
                if (stage, i) in _POOL_BEFORE:
                    layers[f"maxpool{i + 1}"] = nn.MaxPool2d(_POOL_BEFORE[stage, i])
                name = f"block{i + 1}"
                k1, k2 = kernels[stage][min(i, 1)]
                inner = width[f"{stage}.{name}.conv1"]
                out = width[f"{stage}.{name}.conv2"]
                _check_groups(f"{stage}.{name}", num_groups, channels, inner, out)
                # A cut may make both sides equally wide: the shortcut that was there stays.
                shortcut = f"{stage}.{name}.shortcut.conv" in width
                if channels != out and not shortcut:
                    raise ValueError(f"model.widths has no {stage}.{name}.shortcut.conv")
                layers[name] = Block(channels, inner, out, k1, k2, num_groups, shortcut)
                channels = out
            if stage in _POOL_AFTER:
                layers[f"maxpool{num_blocks + 1}"] = nn.MaxPool2d(_POOL_AFTER[stage])
            self.add_module(stage, nn.Sequential(layers))
        self.feed_forward = nn.Sequential(
            nn.Conv2d(channels, num_classes, 1, bias=False),
            nn.BatchNorm2d(num_classes),
            nn.AdaptiveAvgPool2d(1),
        )
        self._initialise()

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


def conv_widths(network: nn.Module) -> dict[str, int]:
    """Return the output channels of every convolution by its name, the classifier's left out."""
    classifier = getattr(network, "classifier", None)
    return {
        name: module.out_channels
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module is not classifier
    }


def _fan_out(conv: nn.Conv2d) -> int:
    return conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels


def _resolve_widths(
    widths: Sequence[int] | Mapping[str, int] | None, base: int, mult: int, blocks: Sequence[int]
) -> dict[str, int]:
    """Return the output channels of every convolution, shortcuts only where there is one."""
    names = ["in_c.0"] + [
        f"{stage}.block{i + 1}.conv{j}"
        for stage, n in zip(STAGES, blocks, strict=True)
        for i in range(n)
        for j in (1, 2)
    ]
    if isinstance(widths, Mapping):
        missing = [name for name in names if name not in widths]
        if missing:
            raise ValueError(f"model.widths has no width for {', '.join(missing)}")
        resolved = {name: int(widths[name]) for name in names}
        for name, width in widths.items():
            # The shortcut's width is its block's output width: recorded, never free.
            if name.endswith(".shortcut.conv"):
                if width != resolved.get(name.removesuffix("shortcut.conv") + "conv2"):
                    raise ValueError(f"model.widths: {name} must be as wide as its block's conv2")
                resolved[name] = width
            elif name not in resolved:
                raise ValueError(f"model.widths names {name}, a layer this network does not have")
    else:
        stage_widths = [base, base * mult, base * mult**2] if widths is None else list(widths)
        if len(stage_widths) != 3:
            raise ValueError(
                f"model.widths takes three widths, one a stage: got {len(stage_widths)}"
            )
        by_stage = dict(zip(STAGES, stage_widths, strict=True))
        resolved = {name: by_stage.get(name.split(".")[0], stage_widths[0]) for name in names}
        for before, stage in itertools.pairwise(STAGES):
            if by_stage[before] != by_stage[stage]:
                resolved[f"{stage}.block1.shortcut.conv"] = by_stage[stage]
    narrow = [f"{name}={width}" for name, width in resolved.items() if width < 1]
    if narrow:
        raise ValueError(f"every layer needs at least one channel: {', '.join(narrow)}")
    return resolved


def _check_groups(block: str, groups: int, *widths: int) -> None:
    if any(width % groups for width in widths):
        raise ValueError(f"model.groups: {block} has widths {widths}, not multiples of {groups}")
