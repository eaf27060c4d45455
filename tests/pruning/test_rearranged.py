"""Channels that are divided or shuffled are cut alike in every part."""

import copy
from collections.abc import Callable
from typing import Any

import attentions
import blocks
import pytest
import torch
import wirings
import zoo
from networks import plan_for, randomised
from torch import Tensor, nn
from torch.nn import functional

import cpprune
from cpprune.models.resize import layer_widths
from cpprune.pruning.groups import dependency_graph
from cpprune.pruning.importance import score
from cpprune.pruning.prunable import classify_groups
from cpprune.pruning.rearranged import Rearranged
from cpprune.pruning.surgery import apply_plan, kept_entries

SHAPE = (1, 28, 28)
OUTPUTS = "makes the outputs of the network"


def widths(network: nn.Module) -> dict[str, int]:
    return {name: width for name, width in layer_widths(network).items() if name != "head"}


# For each network, the layers that keep their width.
CUT = {
    zoo.Gated: [],
    zoo.Chunked: [],
    blocks.C2f: [],
    blocks.CSPSplit: [],
    blocks.Res2: [],
    blocks.ShuffleNet: [],
    blocks.Sliced: [],
    blocks.Conv1dSplit: [],
    blocks.FixedSplit: ["first.0"],
    # Channels of one map, or of which the largest is taken, go together.
    blocks.Maxout: [],
    blocks.PixelShuffled: [],
    wirings.LinearToMaps: [],
    wirings.Mirrored: [],
    wirings.Unbound: [],
    # Every head loses the same positions.
    attentions.HeadsOfAnySize: [],
    # Queries and keys are cut together, the values keep a width that the code knows.
    attentions.NonLocal: ["v"],
}


@pytest.mark.parametrize("kind", CUT)
def test_the_cut_network_is_the_whole_one_with_silent_channels(kind: type[zoo.Zoo]) -> None:
    network = randomised(kind(10)).eval()
    before = widths(network)
    plan = plan_for(network, SHAPE, ratio=0.5)
    kept = kept_entries(network, SHAPE, plan)
    silent = copy.deepcopy(network).double()
    for key, parameter in silent.named_parameters():
        mask = torch.zeros(parameter.numel(), dtype=torch.float64)
        mask[kept[key].flatten()] = 1
        parameter.data *= mask.view_as(parameter)
    apply_plan(network, SHAPE, plan)
    whole = {name for name, width in widths(network).items() if width == before[name]}
    assert whole == set(CUT[kind])
    assert all(
        width == before[name] / 2 for name, width in widths(network).items() - before.items()
    )
    x = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = silent(x)
    assert expected.std() > 0
    torch.testing.assert_close(network.double()(x), expected, rtol=1e-9, atol=0)


def test_the_score_of_a_unit_is_the_mean_over_its_parts() -> None:
    network = randomised(blocks.CSPSplit(10)).eval()
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        groups, reasons = classify_groups(graph, network)
        (group,) = [group for group in groups if group.layer == "first.0"]
        (found,) = score("magnitude", [group], reduction="sum", normaliser="none")
    assert reasons == {"head": OUTPUTS}
    assert (group.blocks, group.units) == (2, 8)
    state = {key: tensor.double().abs() for key, tensor in network.state_dict().items()}
    own = state["first.0.weight"].sum((1, 2, 3)) + state["first.1.weight"]
    # The first half is concatenated as it is, the second one goes through the block.
    own[:8] += state["join.0.weight"].sum((0, 2, 3))[:8]
    own[8:] += state["block.0.weight"].sum((0, 2, 3))
    torch.testing.assert_close(found, own.view(2, 8).mean(0), rtol=1e-5, atol=0)


def test_the_score_of_a_map_is_the_mean_over_its_places() -> None:
    network = randomised(wirings.LinearToMaps(10)).eval()
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        groups, _ = classify_groups(graph, network)
        (group,) = [group for group in groups if group.layer == "wide"]
        (found,) = score("magnitude", [group], reduction="sum", normaliser="none")
    assert (group.blocks, group.units) == (16, 8)
    assert group.channels([1, 0]) == list(range(32))
    state = {key: tensor.double().abs() for key, tensor in network.state_dict().items()}
    own = state["wide.weight"].sum(1).view(8, 16).sum(1)
    read = state["up1.weight"].sum((1, 2, 3))
    torch.testing.assert_close(found, (own + read) / 16, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("taken", "number", "forwards", "backwards"),
    [
        # the second of two halves
        ([2, 3], 4, [[0], [1], [0], [1]], [[0, 2], [1, 3]]),
        # three of four channels
        ([0, 1, 2], 4, [[0], [1], [2], []], [[0], [1], [2]]),
        # a shuffle of two groups
        (
            [0, 3, 1, 4, 2, 5],
            6,
            [[0, 1], [2, 3], [4, 5]] * 2,
            [[0, 3]] * 2 + [[1, 4]] * 2 + [[2, 5]] * 2,
        ),
        # any other order
        ([2, 0, 1], 3, [[1], [2], [0]], [[2], [0], [1]]),
        # the larger of two channels, twice
        ([[0, 2], [1, 3]], 4, [[0], [1], [0], [1]], [[0, 2], [1, 3]]),
    ],
)
def test_which_channels_go_together(
    taken: list[Any], number: int, forwards: list[list[int]], backwards: list[list[int]]
) -> None:
    made = Rearranged([c if isinstance(c, list) else [c] for c in taken], number)
    assert (made.forwards, made.backwards) == (forwards, backwards)


@pytest.mark.parametrize(
    "shuffle",
    [
        lambda x: functional.channel_shuffle(x, 2),
        lambda x: x.unflatten(1, (2, -1)).swapaxes(1, 2).flatten(1, 2),
    ],
    ids=["channel_shuffle", "unflatten"],
)
def test_ways_to_shuffle(shuffle: Callable[[Tensor], Tensor]) -> None:
    class Net(zoo.Zoo):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self.wide, self.last = nn.Conv2d(12, 16, 1), nn.Conv2d(16, 12, 1)
            self.groups = nn.Conv2d(16, 16, 3, groups=16)

        def middle(self, x: Tensor) -> Tensor:
            return self.last(self.groups(shuffle(self.wide(x))))

    network = randomised(Net(10))
    apply_plan(network, SHAPE, plan_for(network, SHAPE, ratio=0.5))
    assert widths(network) == {"stem.0": 6, "wide": 8, "groups": 8, "last": 6}
    assert network.eval()(torch.zeros(2, *SHAPE)).shape == (2, 10)


def test_tracing_leaves_the_network_as_it_is() -> None:
    network = cpprune.build_model("blocks:C2f").eval()
    x = torch.randn(2, *SHAPE)
    before = network(x)
    with dependency_graph(network, torch.zeros(1, *SHAPE)):
        pass
    assert torch.equal(network(x), before)


def test_parts_are_a_tuple_as_they_are_in_torch() -> None:
    class Net(zoo.Zoo):
        def middle(self, x: Tensor) -> Tensor:
            one, two = x.chunk(2, 1)
            return torch.cat(torch.split(one, 3, 1) + (two,), 1)  # noqa: RUF005

    with dependency_graph(Net(10), torch.zeros(1, *SHAPE)) as graph:
        kinds = [node.module for node in graph.dependencies.module2node.values()]
    assert sum(isinstance(kind, Rearranged) for kind in kinds) == 4
