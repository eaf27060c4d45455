"""Models of several kinds with their networks in ONNX, and a file of the command, made once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from export_models import MAKERS, make_model
from networks import randomised

from cpprune.models.artifact import Model


@dataclass(frozen=True)
class Exported:
    """A model and its network in ONNX."""

    model: Model
    network: Any


@pytest.fixture(scope="session")
def exported() -> Callable[[str], Exported]:
    """Returns a model of MAKERS and its network in ONNX."""
    from cpprune.export.network import export_network

    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            torch.manual_seed(0)
            network, spec = MAKERS[name]()
            model = make_model(randomised(network, gain=1.4), spec)
            made[name] = Exported(model, export_network(model.network, model.input_shape))
        return made[name]

    return get


@pytest.fixture(scope="session")
def exported_file(call: Callable[..., int], tiny_run: Path, tmp_path_factory: Any) -> Path:
    """The tiny run's model as an ONNX file. Tests must not change it."""
    path: Path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    assert call("export", tiny_run / "model", "--out", path) == 0
    return path
