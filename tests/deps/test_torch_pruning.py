"""What is not documented of Torch-Pruning."""

import torch
import torch_pruning
from torch import Tensor, nn

from cpprune.deps.torch_pruning import map_channels, trace


class Swap(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.flip(1)


class Swapped(nn.Module):
    """The operation, to the graph."""


class Pruner(torch_pruning.pruner.function.BasePruningFunc):
    def prune_out_channels(self, layer, idxs):
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer):
        return 4

    get_in_channels = get_out_channels


def test_an_operation_is_put_into_the_graph_and_mapped():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    made = {}

    def forward(whole: nn.Module, x: Tensor) -> Tensor:
        hidden = Swap.apply(whole[0](x))
        made[hidden.grad_fn] = Swapped()
        return whole[1](hidden)

    graph = trace(network, torch.ones(1, 3), {Swapped: Pruner()}, forward, made)
    (swapped,) = [node for node in graph.module2node.values() if isinstance(node.module, Swapped)]
    reverse = [[3], [2], [1], [0]]
    map_channels(swapped, reverse, reverse)

    def pruned(layer, which, channels):
        group = graph.get_pruning_group(layer, which, idxs=channels)
        return {(item.dep.target.module, item.dep.handler.__name__): item.idxs for item in group}

    first, second = network
    found = pruned(first, torch_pruning.prune_linear_out_channels, [0, 1])
    assert sorted(found[second, "prune_in_channels"]) == [2, 3]
    found = pruned(second, torch_pruning.prune_linear_in_channels, [3])
    assert found[first, "prune_out_channels"] == [0]
