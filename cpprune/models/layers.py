"""Layers that several network families are made of."""

from __future__ import annotations

from torch import nn


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    relu: bool = True,
) -> nn.Sequential:
    """Return a convolution that pads by half of its kernel, batch normalisation and perhaps ReLU."""
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = high // 2, wide // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        *([nn.ReLU()] if relu else []),
    )
