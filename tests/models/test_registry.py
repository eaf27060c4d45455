"""Every network family: found by its name, built, pruned, rebuilt, saved and described."""

import subprocess
import sys

import pytest
import torch
from networks import SHAPE, parameters, plan_for, randomised
from torch import nn

import cpprune
from cpprune.models import config as model_config
from cpprune.models import networks
from cpprune.models.config import ModelConfig
from cpprune.models.registry import (
    can_be_fused,
    check_logits,
    network_class,
    rebuild_model,
    settings_of,
)
from cpprune.pruning.surgery import apply_plan

OWN = """
from torch import nn

from cpprune.models.registry import register


@register("tiny_net")
class TinyNet(nn.Module):
    def __init__(self, num_classes: int, *, base_channels: int = 4, depth: int = 1) -> None:
        super().__init__()
        sizes = [1, *[base_channels] * depth]
        layers = [nn.Conv2d(a, b, 3, 2) for a, b in zip(sizes, sizes[1:])]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(base_channels, num_classes)

    def forward(self, x):
        return self.classifier(self.body(x))
"""


@pytest.fixture
def tiny_net(tmp_path, monkeypatch):
    (tmp_path / "tiny_net.py").write_text(OWN)
    names = (*networks.NAMES, "tiny_net")
    monkeypatch.setattr(networks, "__path__", [*networks.__path__, str(tmp_path)])
    monkeypatch.setattr(networks, "NAMES", names)
    monkeypatch.setattr(model_config, "NAMES", names)
    yield
    sys.modules.pop("cpprune.models.networks.tiny_net", None)


@pytest.mark.parametrize("name", networks.NAMES)
def test_a_family_gives_logits_of_any_number_of_classes(name):
    network = cpprune.build_model(name, num_classes=7)
    check_logits(network, SHAPE, 7)
    assert isinstance(network, network_class(name))
    assert isinstance(network.classifier, nn.Conv2d | nn.Linear)


@pytest.mark.parametrize("name", networks.NAMES)
def test_a_configuration_builds_a_family_with_the_defaults_of_its_class(name):
    config = ModelConfig(name=name).network_config()
    assert config.keys() == settings_of(name).keys()
    built = cpprune.build_model(name, **config)
    assert parameters(built) == parameters(cpprune.build_model(name))


@pytest.mark.parametrize("name", networks.NAMES)
def test_a_pruned_family_is_rebuilt_from_its_tensors(name):
    network = randomised(cpprune.build_model(name)).eval()
    apply_plan(network, SHAPE, plan_for(network))
    config = ModelConfig(name=name).network_config()
    again = rebuild_model(name, 10, config, network.state_dict(), SHAPE).eval()
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("name", networks.NAMES)
def test_a_family_is_described(cli, name):
    network = cpprune.build_model(name)
    shown = network.family_when_fused() if can_be_fused(network) else name
    assert cli("info", "--model.name", name).out.startswith(f"{shown} for inputs of 1 × 256 × 44")


def test_a_family_is_one_file(tiny_net):
    config = ModelConfig(name="tiny_net", base_channels=6, arguments={"depth": 2})
    network = cpprune.build_model("tiny_net", num_classes=3, **config.network_config())
    assert [layer.out_channels for layer in network.body[:2]] == [6, 6]
    again = rebuild_model("tiny_net", 3, config.network_config(), network.state_dict(), SHAPE)
    assert parameters(again) == parameters(network)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rho": 6}, r"model\.rho=6: tiny_net has no such setting"),
        ({"arguments": {"dept": 2}}, r"model\.arguments=.*tiny_net has no such setting"),
        ({"arguments": {"base_channels": 2}}, r"model\.arguments=.*tiny_net has no such setting"),
        ({"arguments": {"depth": "2"}}, r"model\.arguments\.depth: "),
    ],
    ids=str,
)
def test_a_wrong_setting_of_a_new_family_is_named(tiny_net, wrong, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(name="tiny_net", **wrong)


def test_names_of_families_need_no_torch():
    code = "import sys; from cpprune.models.config import ModelConfig as C; C(name='cp_mobile'); "
    subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True, timeout=60
    )
