"""Networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from cpprune.models.cp_resnet import CPResNet

FAMILIES: dict[str, Callable[..., nn.Module]] = {"cp_resnet": CPResNet}


@dataclass(kw_only=True)
class ModelConfig:
    """Which network, and how wide."""

    name: str = "cp_resnet"
    """network family"""
    base_channels: int = 32
    """width of the first stage"""
    channels_multiplier: int = 2
    """the second and third stage are this much, and its square, wider"""
    widths: list[int] | None = None
    """three widths, one a stage, instead of the two numbers above"""
    rho: int = 4
    """receptive-field parameter; 4 sees 91 mel bins × 39 frames"""
    blocks: list[int] = field(default_factory=lambda: [2, 2, 2])
    """residual blocks in each stage"""
    groups: list[int] = field(default_factory=lambda: [1, 1, 1])
    """groups of the block convolutions in each stage"""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.base_channels < 1 or self.channels_multiplier < 1:
            raise ValueError(
                f"model.base_channels={self.base_channels}, model.channels_multiplier="
                f"{self.channels_multiplier}: both must be at least 1"
            )
        if self.widths is not None and (len(self.widths) != 3 or min(self.widths) < 1):
            raise ValueError(
                f"model.widths={self.widths}: give three positive numbers, one a stage"
            )
        if not 1 <= self.rho <= 16:
            raise ValueError(f"model.rho={self.rho}: must be from 1 to 16")

    def network_config(self) -> dict[str, Any]:
        """Return what `build_model` takes beside the name."""
        config = asdict(self)
        del config["name"]
        return config


def check_name(name: str) -> None:
    """Raise ValueError, with the nearest name, unless this network family is known."""
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"model.name={name!r}: choose one of {', '.join(FAMILIES)}{hint}")


def build_model(name: str, *, num_classes: int = 10, **config: Any) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        name: network family, e.g. "cp_resnet".
        num_classes: number of outputs.
        **config: what the family takes, e.g. `base_channels=32, channels_multiplier=2`, or
            `widths=[18, 37, 75]`; see `CPResNet`.

    Returns:
        A module that maps x_BCFT [B, 1, F, T] to logits [B, num_classes].

    Raises:
        ValueError: unknown name, or a config that does not fit together.
    """
    check_name(name)
    return FAMILIES[name](num_classes, **config)
