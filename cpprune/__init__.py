"""cpprune: train, prune and ship small audio networks.

    model = cpprune.load("runs/NAME/model")                 # a trained model: clips → logits
    network = cpprune.build_model("cp_resnet", rho=4)       # a fresh network
    features = cpprune.log_mel("cpjku23")                   # a front end: waveforms → spectrograms
    dataset = cpprune.open_dataset("data/scenes")           # clips, labels and splits
    result = cpprune.train(data={"path": "data/scenes"})    # a run, as `cpprune train`

What a user can mend is raised as `cpprune.UserError`. Names are imported when first used, so that
`import cpprune` needs neither torch nor time.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpprune.audio.frontend import log_mel
    from cpprune.config import RunConfig
    from cpprune.models.artifact import load
    from cpprune.models.registry import build_model
    from shards.errors import UserError
    from shards.reader import open_dataset

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "build_model", "load", "log_mel", "open_dataset", "train"]

_HOMES = {
    "UserError": ("shards.errors", "UserError"),
    "build_model": ("cpprune.models.registry", "build_model"),
    "load": ("cpprune.models.artifact", "load"),
    "log_mel": ("cpprune.audio.frontend", "log_mel"),
    "open_dataset": ("shards.reader", "open_dataset"),
}


def __getattr__(name: str) -> object:
    """Import a public name from its home (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    globals()[name] = value = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def train(config: RunConfig | None = None, /, **settings: Any) -> dict[str, Any]:
    """Train, or resume the run in the run folder.

    Args:
        config: the whole configuration; or
        **settings: its fields, those of a room as a mapping, e.g. `run="runs/a", optim={"lr": 1e-3}`.

    Returns:
        What `result.json` holds: the best validation metrics, parameters and MACs, and the folders. For
        a run that was asked to stop: `run`, `stopped` (why), and the `epoch` and `batch` that come next.

    Raises:
        UserError: wrong data or settings, or a run folder of another run.
        ValueError: a wrong value of a setting.
        TypeError: an unknown setting, or both a configuration and settings.
    """
    from dataclasses import asdict

    from cpprune.config import COMPONENTS, RunConfig, flatten
    from cpprune.training.loop import train as run_training

    if config is None:
        given = {k: v for k, v in settings.items() if k in COMPONENTS and isinstance(v, Mapping)}
        rooms = {k: COMPONENTS[k](**v) for k, v in given.items()}
        config = RunConfig(**{**settings, **rooms})
    elif settings:
        raise TypeError("train() takes a RunConfig or settings, not both")
    return asdict(run_training(config, frozenset(flatten(settings))))
