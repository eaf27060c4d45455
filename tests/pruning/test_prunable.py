"""What can be cut is found out by cutting it: small networks made to be hard."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import plan_for
from torch import Tensor, nn

from cpprune.models.resize import fit, layer_widths
from cpprune.pruning.groups import dependency_graph
from cpprune.pruning.preview import preview
from cpprune.pruning.prunable import classify_groups, prunable_groups
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """stem – what is asked for – head; nothing has the name of a classifier."""

    def __init__(self, middle: Callable[[Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.bend = nn.ReLU()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.middle = middle
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self, self.bend(self.stem(x)))  # type: ignore[call-arg, arg-type]
        return self.head(y.mean((2, 3)))


def same(net: Any, x: Tensor) -> Tensor:
    return x


def shuffled(net: Any, x: Tensor) -> Tensor:
    """Channel c of group g goes to place 3·c + g, as in ShuffleNet."""
    return x.unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2)


def heads(net: Any, x: Tensor) -> Tensor:
    y = net.wide(x)
    return x * y.reshape(len(y), 3, 4, *y.shape[2:]).softmax(1).flatten(1, 2)


def gated(net: Any, x: Tensor) -> Tensor:
    a, b = net.wide(x).chunk(2, 1)
    return net.last(a * b.sigmoid())


def normed(net: Any, x: Tensor) -> Tensor:
    return net.last(net.norm(net.wide(x)))


def crossed(net: Any, x: Tensor) -> Tensor:
    """Adds to each channel its mirror image."""
    y = net.wide(x)
    return net.last(y + y.flip(1))


def sorted_(net: Any, x: Tensor) -> Tensor:
    """Sorts the channels, which the trace sees as the channels themselves."""
    return net.last(net.wide(x).sort(1).values)


def classified(
    network: nn.Module, shape: tuple[int, ...] = SHAPE
) -> tuple[dict[str, int], dict[str, str]]:
    with dependency_graph(network, torch.zeros(1, *shape)) as graph:
        groups, not_prunable = classify_groups(graph, network)
        assert [g.layer for g in prunable_groups(graph, network)] == [g.layer for g in groups]
    return {group.layer: group.blocks for group in groups}, not_prunable


def conv(a: int, b: int, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, 1, **settings)


OUTPUTS = "makes the outputs of the network"


@pytest.mark.parametrize(
    ("network", "cut", "not_prunable"),
    [
        pytest.param(Net(same), {"stem": 1}, {"head": OUTPUTS}, id="plain"),
        pytest.param(
            Net(same, bend=nn.PReLU(12)), {"stem": 1}, {"head": OUTPUTS}, id="a slope a channel"
        ),
        pytest.param(
            Net(lambda n, x: shuffled(n, n.wide(x)), wide=conv(12, 12, groups=3)),
            {"stem": 3, "wide": 3},
            {"head": OUTPUTS},
            id="shuffle after a grouped convolution",
        ),
        pytest.param(Net(shuffled), {"stem": 3}, {"head": OUTPUTS}, id="shuffle"),
        pytest.param(
            Net(gated, wide=conv(12, 16), last=conv(8, 12)),
            {"stem": 1, "wide": 2, "last": 1},
            {"head": OUTPUTS},
            id="a gate of half of the channels",
        ),
        pytest.param(
            Net(normed, wide=conv(12, 16), norm=nn.GroupNorm(4, 16), last=conv(16, 12)),
            {"stem": 1, "wide": 4, "last": 1},
            {"head": OUTPUTS},
            id="a norm over groups of channels",
        ),
        pytest.param(
            Net(crossed, wide=conv(12, 16), last=conv(16, 12)),
            {"stem": 1, "wide": 2, "last": 1},
            {"head": OUTPUTS},
            id="mirrored channels",
        ),
        pytest.param(
            Net(sorted_, wide=conv(12, 16), last=conv(16, 12)),
            {"stem": 1, "last": 1},
            {"wide": "is mixed with other channels", "head": OUTPUTS},
            id="sorted channels",
        ),
    ],
)
def test_what_can_be_cut(
    network: nn.Module, cut: dict[str, int], not_prunable: dict[str, str]
) -> None:
    found, reasons = classified(network)
    assert found == cut
    assert reasons.keys() == not_prunable.keys()
    assert all(reason in reasons[layer] for layer, reason in not_prunable.items())
    before = layer_widths(network)
    plan = plan_for(network, SHAPE, ratio=0.5)
    assert preview(network, SHAPE, [plan])["left_alone"] == reasons
    fresh = copy.deepcopy(network)
    apply_plan(network, SHAPE, plan)
    after = layer_widths(network)
    assert all(after[layer] == before[layer] / 2 for layer in cut)
    assert all(after[layer] == before[layer] for layer in not_prunable)
    assert fit(fresh, network.state_dict())
    fresh.load_state_dict(network.state_dict())
    x = torch.randn(2, *SHAPE)
    assert torch.equal(fresh.eval()(x), network.eval()(x))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Net(heads, wide=conv(12, 12)), r"cannot lose a channel \(RuntimeError: shape"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), f"cut: 1 {OUTPUTS}$"),
        (nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), "it has no layers"),
    ],
)
def test_where_nothing_can_be_cut(network: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=r"^nothing in this network can be cut: ") as caught:
        classified(network)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.cell = nn.GRU(12 * 4, 10, batch_first=True, bidirectional=True)
        self.out = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu()).permute(0, 3, 1, 2).flatten(2)
        return self.out(self.cell(y)[0].mean(1))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize(
    ("make", "cut", "kept"),
    [
        (Recurrent, {"first": 4, "second": 6, "cell": 10}, ["out"]),
        (
            Attending,
            {"patches": 6, "block.self_attn.out_proj": 6, "block.linear1": 12, "block.linear2": 6},
            ["out"],
        ),
    ],
)
def test_what_is_cut_around_recurrent_layers_and_attention(
    make: Callable[[], nn.Module], cut: dict[str, int], kept: list[str]
) -> None:
    network = make()
    before = layer_widths(network)
    plan = plan_for(network, SHAPE, ratio=0.5)
    apply_plan(network, SHAPE, plan)
    after = layer_widths(network)
    assert after == before | cut
    assert after.keys() >= set(kept)
    fresh = make()
    fit(fresh, network.state_dict())
    fresh.load_state_dict(network.state_dict())
    x = torch.randn(2, *SHAPE)
    assert torch.equal(fresh.eval()(x), network.eval()(x))


def test_outputs_that_are_no_tensor_are_named() -> None:
    network = Net(same)
    network.register_forward_hook(lambda module, inputs, output: {"logits": output})
    with pytest.raises(UserError, match="must return its logits as one tensor, not dict"):
        classified(network)


def test_a_network_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(
        UserError, match=r"cannot be traced for pruning \(RuntimeError.*\[1, 1, 8, 8\]"
    ):
        classified(Net(same), (1, 8, 8))


def test_the_network_is_not_changed() -> None:
    network = Net(normed, wide=conv(12, 16), norm=nn.GroupNorm(4, 16), last=conv(16, 12)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.stem.requires_grad_(False)
    classified(network)
    assert all(module.training for module in network.modules())
    assert not network.stem.weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_criterion_with_nothing_to_look_at_is_named() -> None:
    with pytest.raises(UserError, match="criterion=bn_scale: finds nothing to score in stem"):
        plan_for(Net(same), SHAPE, criterion="bn_scale")
