"""Fresh networks take on the shapes of tensors that were cut from others of their kind."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cpprune
from cpprune.models.registry import rebuild_model
from cpprune.models.resize import fit, layer_widths


class Everything(nn.Module):
    """A network of width w in all its parts, with parameters of its own."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, w, 3, padding=1)
        self.norm = nn.BatchNorm2d(w)
        self.depthwise = nn.Conv2d(w, w, 3, padding=1, groups=w)
        self.grouped = nn.Conv2d(w, w, 1, groups=2)
        self.group_norm = nn.GroupNorm(2, w)
        self.instance_norm = nn.InstanceNorm2d(w, affine=True, track_running_stats=True)
        self.prelu = nn.PReLU(w)
        self.up = nn.ConvTranspose2d(w, w + 1, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, w + 1, 1))
        self.rms_norm = nn.RMSNorm(w + 1)
        self.layer_norm = nn.LayerNorm(w + 1)
        self.linear = nn.Linear(w + 1, w)
        self.table = nn.Embedding(4, w)
        self.classifier = nn.Linear(w, 5)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.depthwise(self.norm(self.conv(x_BCHW)))
        y = self.up(self.prelu(self.instance_norm(self.group_norm(self.grouped(y)))))
        y = (y.flatten(2) + self.position).mean(2)
        y = self.linear(self.layer_norm(self.rms_norm(y))) + self.table(torch.tensor(3))
        return self.classifier(y)


def numbers(network: nn.Module) -> dict[str, dict[str, Any]]:
    """What every module knows of its own shape: all its whole numbers, and tuples of them."""
    return {
        name: {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, int | tuple) and not key.startswith("_") and key != "training"
        }
        for name, module in network.named_modules()
    }


@pytest.mark.parametrize(("built", "recorded"), [(8, 6), (6, 8), (8, 2), (8, 8)])
def test_every_kind_of_module_is_fitted(built: int, recorded: int) -> None:
    torch.manual_seed(0)
    original = Everything(recorded)
    network = Everything(built)
    network.conv.requires_grad_(False)
    assert fit(network, original.state_dict()) == (built != recorded)
    network.load_state_dict(original.state_dict())
    assert numbers(network) == numbers(original)
    assert not network.conv.weight.requires_grad
    assert network.position.requires_grad
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(network.eval()(x), original.eval()(x))
    # It is whole: it trains, too.
    network.train()(x).square().sum().backward()
    assert all((p.grad is None) != p.requires_grad for p in network.parameters())


def test_nothing_changes_where_all_fits() -> None:
    network = Everything(4)
    before = {name: id(p) for name, p in network.named_parameters()}
    assert not fit(network, Everything(4).state_dict())
    assert {name: id(p) for name, p in network.named_parameters()} == before


@pytest.mark.parametrize(
    ("name", "shape"),
    [("conv.weight", (4, 3, 5, 5)), ("conv.weight", (4, 3, 3)), ("linear.weight", (4,))],
)
def test_what_is_more_than_a_width_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} has shape \[{shape[0]}"):
        fit(Everything(4), {name: torch.zeros(shape)})


def test_widths_are_those_of_convolutions_and_linear_layers() -> None:
    expected = {"conv": 6, "depthwise": 6, "grouped": 6, "up": 7, "linear": 6, "classifier": 5}
    assert layer_widths(Everything(6)) == expected
    recorded = layer_widths(cpprune.build_model("cp_resnet", widths=[3, 4, 5]))
    assert recorded["stage1.block2.conv1"] == 3
    assert recorded["stage2.block1.shortcut.conv"] == 4
    assert recorded["stage3.block2.conv2"] == 5
    assert "feed_forward.0" not in recorded
    assert len(recorded) == 15


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    state = dict(cpprune.build_model("cp_resnet", widths=[3, 4, 5]).state_dict())
    config = {"widths": [6, 8, 10]}
    rebuild_model("cp_resnet", 10, config, state, (1, 64, 32))
    state["stage2.block1.conv1.weight"] = torch.zeros(7, 3, 3, 3)
    with pytest.raises(ValueError, match="cannot take inputs of shape"):
        rebuild_model("cp_resnet", 10, config, state, (1, 64, 32))


@pytest.mark.parametrize("widths", [[3, 3, 3], [3, 4, 4], [3, 3, 5], [3, 4, 5]])
def test_an_import_that_recorded_no_widths_is_rebuilt(widths: list[int]) -> None:
    original = cpprune.build_model("cp_resnet", widths=widths)
    state = original.state_dict()
    again = rebuild_model("cp_resnet", 10, {"rho": 4}, state, (1, 64, 32))
    assert again.state_dict().keys() == state.keys()
    x = torch.randn(2, 1, 64, 32)
    assert torch.equal(again.eval()(x), original.eval()(x))
    assert copy.deepcopy(again).state_dict().keys() == state.keys()
