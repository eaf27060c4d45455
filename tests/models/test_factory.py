"""Networks of the user's own, by name: found, called, or refused without being called."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cpprune
from cpprune.models import factory
from cpprune.models.config import ModelConfig
from cpprune.models.registry import check_logits
from shards.errors import UserError

SOURCE = """
from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from elsewhere import Unknown


class Flat(nn.Module):
    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

    def forward(self, x):
        return self.layers(x).mean((2, 3))


def tiny(num_classes: int, width: int = 8, unused: Unknown = None) -> nn.Module:
    return Flat(num_classes, width)


def subclass(num_classes: int) -> "Flat":
    return Flat(num_classes)


@functools.cache
def cached(num_classes: int) -> nn.Module:
    return Flat(num_classes)


@functools.wraps(tiny)
def wrapped(**arguments):
    return tiny(**arguments)


called = []


def silent(num_classes):
    called.append(num_classes)
    return Flat(num_classes)


def number(num_classes: int) -> int:
    called.append(num_classes)
    return 3


def unknown(num_classes: int) -> Unknown:
    called.append(num_classes)


def liar(num_classes: int) -> nn.Module:
    return "a network"


def broken(num_classes: int) -> nn.Module:
    raise KeyError("first line\\nsecond line")


instance = Flat(3)
constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, which is not on the import path."""
    (tmp_path / "factory_nets.py").write_text(SOURCE)
    (tmp_path / "factory_broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield "factory_nets"
    sys.path[:] = before
    sys.modules.pop("factory_nets", None)


@pytest.mark.parametrize("name", ["Flat", "tiny", "subclass", "wrapped"])
def test_what_makes_networks_is_called(module: str, name: str) -> None:
    network = cpprune.build_model(f"{module}:{name}", num_classes=7)
    assert network(torch.zeros(2, 1, 9, 9)).shape == (2, 7)
    check_logits(network, (1, 9, 9), 7)


def test_arguments_are_passed(module: str) -> None:
    network = cpprune.build_model(f"{module}:tiny", num_classes=3, width=5)
    assert len(network.state_dict()["layers.0.weight"]) == 5


def test_what_does_not_make_networks_is_not_called(module: str, tmp_path: Path) -> None:
    for name in ("silent", "number", "unknown", "cached", "instance", "constant"):
        with pytest.raises(UserError, match=f"{module}:{name}: is not called, since") as caught:
            cpprune.build_model(f"{module}:{name}", num_classes=3)
        assert "\n" not in str(caught.value)
    assert sys.modules[module].called == []
    trace = tmp_path / "trace"
    for name, arguments in {
        "os:system": {"command": f"touch {trace}"},
        "subprocess:run": {"args": ["touch", str(trace)]},
        "subprocess:Popen": {"args": ["touch", str(trace)]},
        "builtins:eval": {"source": "1"},
        "torch:load": {"f": "x"},
    }.items():
        with pytest.raises(UserError, match="is not called"):
            cpprune.build_model(name, **arguments)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("factory_nets:nothing", "factory_nets has no nothing$"),
        (
            "no_such_module:tiny",
            r"no_such_module cannot be imported \(ModuleNotFoundError.*PYTHONPATH",
        ),
        ("factory_broken:tiny", r"factory_broken cannot be imported.*nothing_of_this_name"),
        ("factory_nets:liar", "must return a torch.nn.Module, but returned str"),
        ("factory_nets:broken", r"failed with num_classes=10.*KeyError: .*first line.*second line"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(module: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cpprune.build_model(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"model.factory={name}: ")


def test_wrong_arguments_are_named(module: str) -> None:
    with pytest.raises(UserError, match=r"model.arguments=\{'depth': 3\}.*unexpected keyword"):
        cpprune.build_model(f"{module}:tiny", depth=3)


@pytest.mark.parametrize(
    "text", ["my_nets", "my_nets:", ":tiny", "my nets:tiny", "my_nets:a.b", ""]
)
def test_what_is_no_name_of_a_function_is_refused(text: str) -> None:
    assert not factory.is_factory(text)
    with pytest.raises(ValueError, match=r"must be package\.module:function, such as my_nets:tiny"):
        ModelConfig(factory=text)


def test_a_factory_has_its_arguments_alone() -> None:
    config = ModelConfig(factory="my_nets:tiny", arguments={"width": 3})
    assert config.family == "my_nets:tiny"
    assert config.network_config() == {"width": 3}
    with pytest.raises(ValueError, match=r"model\.rho=6: my_nets:tiny has no such setting"):
        ModelConfig(factory="my_nets:tiny", rho=6)


def test_logits_of_another_shape_are_named(module: str) -> None:
    network = cpprune.build_model(f"{module}:tiny", num_classes=7).train()
    with pytest.raises(ValueError, match=r"to logits \[2, 6\], but gives \[2, 7\]"):
        check_logits(network, (1, 9, 9), 6)
    with pytest.raises(ValueError, match=r"cannot take inputs of shape \[3, 9, 9\] \(RuntimeError"):
        check_logits(network, (3, 9, 9), 7)
    assert all(module.training for module in network.modules())


@pytest.mark.slow
def test_the_current_folder_hides_nothing(module: str, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    code = "from cpprune.models.factory import find; find('factory_nets:tiny'); import json"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path)
