"""What is used of Torch-Pruning: its types, which it does not declare, and what is not documented."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor, nn


class Node(Protocol):
    """A layer or an operation of a traced network."""

    name: str
    module: nn.Module
    type: object
    pruning_dim: int
    inputs: list[Node]
    dependencies: list[Edge]


class Edge(Protocol):
    """That pruning `source` takes `handler`, a pruning function, to `target`."""

    source: Node
    target: Node
    handler: Callable[..., object]
    index_mapping: list[Callable[[Sequence[Index]], list[Index]] | None]

    def __call__(self, idxs: list[int], /) -> nn.Module:
        """Prune these channels of the target; return it, or what takes its place."""


class Index(Protocol):
    """A channel of a node, and that of the group's first layer which it came from."""

    idx: int

    def _replace(self, *, idx: int) -> Self: ...


class Item(Protocol):
    """The channels of one node in a coupled group; `root_idxs` are those of its first layer."""

    dep: Edge
    idxs: list[int]
    root_idxs: list[int]


class CoupledGroup(Protocol):
    """What has to be pruned together."""

    def __iter__(self) -> Iterator[Item]: ...
    def __getitem__(self, number: int, /) -> Item: ...
    def prune(self) -> None:
        """Remove the channels from all of it."""


class LayerPruner(Protocol):
    """The pruning functions of a kind of layer."""

    prune_out_channels: Callable[..., object]


class DependencyGraph(Protocol):
    """Torch-Pruning's graph of a traced network."""

    module2node: dict[nn.Module, Node]

    def is_out_channel_pruning_fn(self, handler: Callable[..., object], /) -> bool:
        """Return whether a pruning function removes output channels."""

    def get_pruner_of_module(self, module: nn.Module, /) -> LayerPruner:
        """Return the pruning functions of a kind of layer."""

    def get_out_channels(self, node: Node, /) -> int | None:
        """Return the number of output channels, if the node has such."""

    def get_in_channels(self, node: Node, /) -> int | None:
        """Return the number of input channels, if the node has such."""

    def get_pruning_group(
        self, module: nn.Module, handler: Callable[..., object], /, idxs: list[int]
    ) -> CoupledGroup:
        """Return what is pruned with these channels of a layer."""


def trace(
    network: nn.Module,
    example: Tensor,
    pruners: Mapping[type[nn.Module], object],
    forward: Callable[[nn.Module, Tensor], object],
    made: Mapping[object, nn.Module],
) -> DependencyGraph:
    """Trace a network.

    Args:
        network: to trace.
        example: its input.
        pruners: pruning functions by the kind of layer.
        forward: computes the outputs of a network, given it and its input.
        made: operations that `forward` adds, each of a kind with pruning functions, by their node in
            autograd's graph. The method that reads that graph is internal.
    """
    import torch_pruning

    class Graph(torch_pruning.DependencyGraph):  # type: ignore[misc]
        def _trace_computational_graph(
            self,
            module2node: object,
            output: object,
            gradfn2module: dict[object, nn.Module],
            *more: Any,
            **named: Any,
        ) -> object:
            gradfn2module.update(made)
            return super()._trace_computational_graph(
                module2node, output, gradfn2module, *more, **named
            )

    graph: DependencyGraph = Graph().build_dependency(
        network, example, forward_fn=forward, customized_pruners=dict(pruners), verbose=False
    )
    return graph


def map_channels(
    node: Node, forwards: Sequence[Sequence[int]], backwards: Sequence[Sequence[int]]
) -> None:
    """Tell the graph which channels of a node's result those of its input are.

    The mappings of edges are internal; the slot is that which concatenations leave free.

    Args:
        node: with one input.
        forwards: for each channel of the input, those of the result.
        backwards: for each channel of the result, those of the input.
    """
    (operand,) = node.inputs
    for edge in node.dependencies:
        if edge.target is operand:
            edge.index_mapping[0] = partial(_mapped, backwards)
    for edge in operand.dependencies:
        if edge.target is node:
            edge.index_mapping[1] = partial(_mapped, forwards)


def _mapped(table: Sequence[Sequence[int]], channels: Sequence[Index]) -> list[Index]:
    found: dict[int, Index] = {}
    for channel in channels:
        if channel.idx < len(table):
            for place in table[channel.idx]:
                found.setdefault(place, channel._replace(idx=place))
    return [found[place] for place in sorted(found)]


def linear_item(item: Item, linear: nn.Linear, *, outputs: bool) -> Item:
    """Return an item of a group as if a linear layer stood in its place.

    The class of items is internal; criteria read these attributes of it.

    Args:
        item: which channels they are.
        linear: the layer that is scored instead.
        outputs: whether they are its output channels, or its inputs.
    """
    import torch_pruning
    from torch_pruning._helpers import GroupItem

    handler = (
        torch_pruning.prune_linear_out_channels
        if outputs
        else torch_pruning.prune_linear_in_channels
    )
    target = SimpleNamespace(module=linear, name=item.dep.target.name)
    dep = SimpleNamespace(
        layer=linear, pruning_fn=handler, handler=handler, trigger=handler, target=target
    )
    made: Item = GroupItem(dep=dep, idxs=list(item.idxs))
    made.root_idxs = item.root_idxs
    return made


def fpgm_importance() -> Any:
    """Return Torch-Pruning's FPGM, which alone fails where a grouped convolution reads the channels.

    Such a convolution is given to it as a linear layer of the same entries.
    """
    import torch_pruning

    class FPGM(torch_pruning.importance.FPGMImportance):  # type: ignore[misc]
        def __call__(self, group: CoupledGroup, **more: object) -> Any:
            return super().__call__([_ungrouped(item) for item in group], **more)

    return FPGM()


def _ungrouped(item: Item) -> Item:
    import torch
    import torch_pruning

    layer = item.dep.target.module
    reads = item.dep.handler == torch_pruning.prune_conv_in_channels
    if not reads or not isinstance(layer, torch_pruning.ops.TORCH_CONV) or layer.groups == 1:
        return item
    weight = layer.weight.detach()
    if not layer.transposed:
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    linear = torch.nn.Linear(1, 1, bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight.flatten(1).T, requires_grad=False)
    return linear_item(item, linear, outputs=False)


def decouple_broadcasts(graph: DependencyGraph) -> None:
    """Take the couplings out of a graph that are between one channel and many, as in x · σ(conv → 1).

    Torch-Pruning takes the channels of all operands of an elementwise operation for the same. One that
    is broadcast over the channels of the others has none of them. Nodes, their edges and the inference
    of channels are internal; without this, such layers are not pruned.
    """
    from torch_pruning.dependency.shape_infer import infer_out_channels_recursively
    from torch_pruning.ops import OPTYPE

    for node in graph.module2node.values():
        if node.type != OPTYPE.ELEMENTWISE or len(node.inputs) < 2:
            continue
        channels = [infer_out_channels_recursively(graph, operand, [0]) for operand in node.inputs]
        if max(number or 0 for number in channels) == 1:
            continue
        for operand, number in zip(node.inputs, channels, strict=True):
            if number == 1:
                node.dependencies = [d for d in node.dependencies if d.target is not operand]
                operand.dependencies = [d for d in operand.dependencies if d.target is not node]
