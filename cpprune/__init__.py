"""cpprune: train, prune and ship small audio networks.

`cpprune.load(folder)` → a model; `cpprune.build_model(name, …)` → a fresh network;
`cpprune.log_mel(preset)` → a front end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from cpprune.audio.frontend import LogMel
    from cpprune.models.artifact import Model

__version__ = "0.1.0"
__all__ = ["__version__", "build_model", "load", "log_mel"]


def load(folder: str | Path, device: str = "cpu", *, trust: Sequence[str] = ()) -> Model:
    """Load a model folder; see `cpprune.models.artifact.load`."""
    from cpprune.models.artifact import load as load_artifact

    return load_artifact(folder, device, trust=trust)


def build_model(name: str, *, num_classes: int = 10, **config: Any) -> nn.Module:
    """Build a network with fresh weights; see `cpprune.models.registry.build_model`."""
    from cpprune.models.registry import build_model as build

    return build(name, num_classes=num_classes, **config)


def log_mel(preset: str = "cpjku22_256") -> LogMel:
    """Return the front end of a preset: cpjku22_256, passt_128, dcase24 or cpjku23.

    Raises:
        ValueError: no such preset.
    """
    from cpprune.audio.config import preset_spec
    from cpprune.audio.frontend import LogMel

    return LogMel(preset_spec(preset))
