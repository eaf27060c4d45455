"""BC-ResNet: residual blocks whose temporal branch is broadcast over frequency.

Source: Kim et al., "Broadcasted Residual Learning for Efficient Keyword Spotting", Interspeech 2021;
sub-spectral normalisation: Chang et al., "SubSpectral Normalization for Neural Audio Data Processing",
ICASSP 2021.

Shapes: B batch, C channels, F mel bins, T frames, K classes, S sub-bands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.models.registry import register

BLOCKS = (2, 2, 4, 4)
STRIDED = (1, 2)  # stages whose first block halves the frequency axis
WIDTHS = (2.0, 1.0, 1.5, 2.0, 2.5, 4.0)  # of the stem, the four stages and the head; × 8 · scale


class SubSpectralNorm(nn.Module):
    """Batch normalisation of each of S equal bands of the mel axis by itself.

    Args:
        channels: C.
        bands: S; where F is no multiple of it, the last band has fewer bins.
    """

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(bands))

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, C, F, T] → the same shape."""
        bins = x_BCFT.shape[2]
        size = -(-bins // len(self.norms))
        parts = [norm(x_BCFT[:, :, i * size : (i + 1) * size]) for i, norm in enumerate(self.norms)]
        return torch.cat(parts, dim=2)


class BroadcastBlock(nn.Module):
    """Frequency-wise convolution, plus its mean over frequency through a temporal convolution.

    y = x + f2(x) + BC(f1(avgpool(f2(x)))), without the shortcut x where the width changes.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        stride: of the frequency axis.
        dilation: of the temporal convolution.
        bands: of the sub-spectral normalisation.
        dropout: probability that a channel of the temporal branch is dropped.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        bands: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.has_shortcut = in_channels == out_channels
        self.transition = nn.Sequential()
        if not self.has_shortcut:
            self.transition.add_module("conv", nn.Conv2d(in_channels, out_channels, 1, bias=False))
            self.transition.add_module("bn", nn.BatchNorm2d(out_channels))
            self.transition.add_module("relu", nn.ReLU())
        width = out_channels
        self.frequency = nn.Conv2d(
            width, width, (3, 1), (stride, 1), (1, 0), groups=width, bias=False
        )
        self.norm = SubSpectralNorm(width, bands)
        self.temporal = nn.Sequential(
            nn.Conv2d(
                width, width, (1, 3), 1, (0, dilation), (1, dilation), groups=width, bias=False
            ),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.Dropout2d(dropout),
        )

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, in_channels, F, T] → [B, out_channels, F / stride, T]."""
        y = self.norm(self.frequency(self.transition(x_BCFT)))
        y = y + self.temporal(y.mean(2, keepdim=True))
        return functional.relu(y + x_BCFT if self.has_shortcut else y)


@register("bc_resnet")
class BCResNet(nn.Module):
    """BC-ResNet of four stages with two, two, four and four blocks.

    Args:
        num_classes: K, the number of classes.
        scale: τ: all widths are multiples of 8 · τ channels; 1 to 8 in the paper.
        bands: S of the sub-spectral normalisation.
        dropout: probability that a channel of a block's temporal branch is dropped.

    Raises:
        ValueError: a scale below 0.25, or no band.
    """

    def __init__(
        self, num_classes: int = 10, *, scale: float = 1.0, bands: int = 5, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if not 0.25 <= scale <= 64 or not 1 <= bands <= 64 or not 0 <= dropout < 1:
            raise ValueError(
                f"model.arguments: scale={scale} must be from 0.25 to 64, bands={bands} from 1 to 64, "
                f"dropout={dropout} from 0 to below 1"
            )
        base = int(8 * scale)
        stem, *stages, head = (int(base * width) for width in WIDTHS)
        self.stem = nn.Sequential(
            nn.Conv2d(1, stem, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        self.stages = nn.Sequential()
        channels = stem
        for number, (width, count) in enumerate(zip(stages, BLOCKS, strict=True)):
            blocks = nn.Sequential()
            for i in range(count):
                stride = 2 if number in STRIDED and i == 0 else 1
                blocks.append(BroadcastBlock(channels, width, stride, 2**number, bands, dropout))
                channels = width
            self.stages.append(blocks)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=(0, 2), groups=channels, bias=False),
            nn.Conv2d(channels, head, 1, bias=False),
            nn.BatchNorm2d(head),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier_conv = nn.Conv2d(head, num_classes, 1)

    @property
    def classifier(self) -> nn.Module:
        """The layer whose outputs are the classes."""
        return self.classifier_conv

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, 1, F, T] → logits [B, K]; F must be at least 33."""
        x = self.head(self.stages(self.stem(x_BCFT)))
        return torch.flatten(self.classifier_conv(x), 1)
