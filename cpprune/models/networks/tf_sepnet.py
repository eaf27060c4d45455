"""TF-SepNet: frequency-wise and temporal convolutions side by side, each on half of the channels.

Source: Cai et al., "TF-SepNet: An Efficient 1D Kernel Design in CNNs for Low-Complexity Acoustic Scene
Classification", ICASSP 2024, in the variant of their submission to DCASE 2024 task 1; residual
normalisation: Kim et al., "Domain Generalization on Efficient Acoustic Scene Classification using
Residual Normalization", 2021.

Residual normalisation takes statistics over all channels, and every layer is coupled with one: no
channel can be removed without a change of all others. So this network is not pruned.

Shapes: B batch, C channels, F mel bins, T frames, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpprune.models.layers import conv_norm
from cpprune.models.registry import register

# Stages: width as a multiple of the network's, and number of blocks. Before each but the first comes
# pooling; before the last only at depth 17.
STAGES = ((1.0, 2), (1.5, 2), (2.0, 2), (2.5, 3))


class ResidualNorm(nn.Module):
    """λ · x + (x − mean) / deviation, both over channels and frames of each mel bin; λ = 0.1."""

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, C, F, T] → the same shape."""
        mean = x_BCFT.mean((1, 3), keepdim=True)
        centred = x_BCFT - mean
        values = x_BCFT.shape[1] * x_BCFT.shape[3]
        # Written out, since var() warns where a rank holds no clip of the last batch.
        variance = centred.square().sum((1, 3), keepdim=True) / max(1, values - 1)
        return 0.1 * x_BCFT + centred * torch.rsqrt(variance + 1e-5)


class SeparateBlock(nn.Module):
    """One half of the channels is averaged over mel bins, the other over frames; both are broadcast.

    Args:
        in_channels: width of the input.
        out_channels: width of the output, even.
        dropout: probability that a value of either branch is dropped.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        half = out_channels // 2
        self.transition = (
            nn.Identity() if in_channels == out_channels else conv_norm(in_channels, out_channels)
        )
        self.frequency = conv_norm(half, half, (3, 1), groups=half)
        self.frequency_mix = conv_norm(half, half)
        self.temporal = conv_norm(half, half, (1, 3), groups=half)
        self.temporal_mix = conv_norm(half, half)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, in_channels, F, T] → [B, out_channels, F, T]."""
        x = self.transition(x_BCFT)
        # Channel shuffle: the two halves are interleaved.
        shuffled = torch.unflatten(x, 1, (2, -1)).transpose(1, 2).flatten(1, 2)
        one, other = shuffled.chunk(2, dim=1)
        over_bins = self.frequency_mix(self.frequency(one).mean(2, keepdim=True))
        over_frames = self.temporal_mix(self.temporal(other).mean(3, keepdim=True))
        return torch.cat((one + self.dropout(over_bins), other + self.dropout(over_frames)), dim=1)


@register("tf_sepnet")
class TFSepNet(nn.Module):
    """TF-SepNet of four stages.

    Args:
        num_classes: K, the number of classes.
        width: channels of the first stage, a multiple of 4; the stem has twice as many.
        depth: 17, or 16 without the pooling before the last stage.
        dropout: probability that a value of a block's branches is dropped.

    Raises:
        ValueError: a width or depth that does not exist.
    """

    def __init__(
        self, num_classes: int = 10, *, width: int = 64, depth: int = 17, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if width < 4 or width % 4 or depth not in (16, 17) or not 0 <= dropout < 1:
            raise ValueError(
                f"model.arguments: width={width} must be a multiple of 4, depth={depth} 16 or 17, "
                f"dropout={dropout} from 0 to below 1"
            )
        self.stem = nn.Sequential(
            conv_norm(1, width // 2, (3, 3), 2),
            conv_norm(width // 2, 2 * width, (3, 3), 2, groups=width // 2),
            ResidualNorm(),
        )
        self.stages = nn.Sequential()
        channels = 2 * width
        for number, (factor, count) in enumerate(STAGES):
            layers = nn.Sequential()
            if 0 < number < (len(STAGES) if depth == 17 else len(STAGES) - 1):
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers.append(SeparateBlock(channels, int(factor * width), dropout))
                channels = int(factor * width)
            layers.append(ResidualNorm())
            self.stages.append(layers)
        self.head = nn.Conv2d(channels, num_classes, 1)

    @property
    def classifier(self) -> nn.Module:
        """The layer whose outputs are the classes."""
        return self.head

    def forward(self, x_BCFT: Tensor) -> Tensor:
        """[B, 1, F, T] → logits [B, K]; F and T must be at least 29."""
        logits: Tensor = self.head(self.stages(self.stem(x_BCFT))).mean((2, 3))
        return logits
