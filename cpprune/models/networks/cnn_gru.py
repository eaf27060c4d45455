"""CNN-GRU: separable convolutions with squeeze-excitation, and a GRU along the channels.

Source: Tan et al., SNTL-NTU submission to DCASE 2025 task 1.

Pruning removes channels of the stem, of the squeeze-excitations and of `deep.0`. Those of the branches
are tied to groups of their convolutions, and those that the GRU goes along are a sequence.

Shapes: B batch, C channels, F mel bins, T frames, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.models.layers import conv_norm
from cpprune.models.registry import register

MEL_ROWS = 16  # the GRU sees 256 mel bins in 16 rows
HIDDEN = 64


def _shuffled(x_BCFT: Tensor) -> Tensor:
    """Channel shuffle: pairs of neighbours become two halves."""
    return torch.unflatten(x_BCFT, 1, (-1, 2)).transpose(1, 2).flatten(1, 2)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a function of the means of all (Hu et al., 2018).

    Args:
        channels: C; the layer between has half as many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // 2)
        self.expand = nn.Linear(channels // 2, channels)

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, C, F, T] → the same shape."""
        scale = self.expand(functional.relu(self.reduce(x_BCFT.mean((2, 3)))))
        return x_BCFT * torch.sigmoid(scale)[:, :, None, None]


class Branch(nn.Module):
    """1×1 – depthwise 5×1 – depthwise 1×5 at half the resolution – SiLU – squeeze-excitation."""

    def __init__(self, in_channels: int, middle: int, out_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            conv_norm(in_channels, middle, relu=False),
            conv_norm(middle, out_channels, (5, 1), groups=middle, relu=False),
            conv_norm(out_channels, out_channels, (1, 5), (2, 2), groups=out_channels, relu=False),
            nn.SiLU(),
        )
        self.excitation = SqueezeExcitation(out_channels)

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, in_channels, F, T] → [B, out_channels, F / 2, T / 2]."""
        y: Tensor = self.excitation(self.convolutions(x_BCFT))
        return y


@register("cnn_gru")
class CNNGRU(nn.Module):
    """Two branches, on maximum and mean of the same channels, mixed by learned weights; then a GRU.

    Args:
        num_classes: K, the number of classes.
        width: channels of the first stage, a multiple of 4.
        middle: channels inside of the branches; they end with twice, the stage after with four times
            as many.
        last: channels that the GRU goes along.

    Raises:
        ValueError: a width that does not exist.
    """

    def __init__(
        self, num_classes: int = 10, *, width: int = 24, middle: int = 36, last: int = 28
    ) -> None:
        super().__init__()
        if width < 4 or width % 4 or middle < 1 or last < 1:
            raise ValueError(
                f"model.arguments: width={width} must be a multiple of 4, middle={middle} and "
                f"last={last} at least 1"
            )
        half, twice = width // 2, 2 * middle
        self.stem = nn.Sequential(
            conv_norm(1, 7, (3, 3), relu=False), conv_norm(7, half, relu=False)
        )
        self.separable = nn.Sequential(
            conv_norm(half, width, (3, 1), groups=half, relu=False),
            conv_norm(width, width, (1, 3), groups=half, relu=False),
            nn.SiLU(),
            SqueezeExcitation(width),
        )
        self.maxima = Branch(width, middle, twice)
        self.means = Branch(width, middle, twice)
        self.mixing = nn.Parameter(torch.full((4,), 0.5))
        self.mix = conv_norm(twice, twice, relu=False)
        self.deep = nn.Sequential(
            conv_norm(twice, 2 * twice, (5, 1), (2, 1), groups=twice, relu=False),
            nn.SiLU(),
            nn.Dropout2d(0.3),
            conv_norm(2 * twice, last, (5, 1), relu=False),
            nn.SiLU(),
        )
        self.rows = nn.AdaptiveAvgPool2d((MEL_ROWS, 1))
        self.gru = nn.GRU(MEL_ROWS, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout1d(0.5)
        self.head = nn.Linear(last, num_classes)

    @property
    def classifier(self) -> nn.Module:
        """The layer whose outputs are the classes."""
        return self.head

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, 1, F, T] → logits [B, K]; F and T must be at least 8."""
        x = self.separable(_shuffled(self.stem(x_BCFT)))
        maxima = self.maxima(functional.max_pool2d(x, 2))
        means = self.means(functional.avg_pool2d(x, 2))
        a, b, c, d = self.mixing.unbind()
        one = a * functional.avg_pool2d(means, 2) + (1 - a) * functional.avg_pool2d(maxima, 2)
        other = b * functional.max_pool2d(maxima, 2) + (1 - b) * functional.max_pool2d(means, 2)
        x = d * one + (1 - d) * other
        x = self.deep(_shuffled(self.mix(x) + x))
        rows_BCR = self.rows(x).flatten(2)
        hidden_BCH, _ = self.gru(rows_BCR)
        along = self.dropout(hidden_BCH).mean(2)
        logits: Tensor = self.head(functional.silu(c * rows_BCR.mean(2) + (1 - c) * along))
        return logits
