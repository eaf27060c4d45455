"""Which channels hang together, and how important each of them is.

Channels are grouped by Torch-Pruning's dependency graph (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023) and scored by its importance functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shards.errors import InputError


def _magnitude() -> Any:
    import torch_pruning as tp

    return tp.importance.MagnitudeImportance(p=1, group_reduction="mean", normalizer="mean")


def _bn_scale() -> Any:
    import torch_pruning as tp

    return tp.importance.BNScaleImportance(group_reduction="mean", normalizer="mean")


def _group_norm() -> Any:
    import torch_pruning as tp

    return tp.importance.MagnitudeImportance(p=2, group_reduction="sum", normalizer="max")


# magnitude: mean L1 norm over the tensors of the group (Li et al., ICLR 2017);
# bn_scale: BatchNorm's scaling factors (Liu et al., "Network Slimming", ICCV 2017);
# group_norm: L2 norm over the whole group (Fang et al., CVPR 2023).
CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude": _magnitude,
    "bn_scale": _bn_scale,
    "group_norm": _group_norm,
}


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose output channels can only be cut together.

    Attributes:
        layer: name of the convolution or linear layer that stands for the group.
        width: its number of output channels.
        coupled: the group as Torch-Pruning holds it.
    """

    layer: str
    width: int
    coupled: Any


@contextmanager
def dependency_graph(network: nn.Module, example: Tensor) -> Iterator[Any]:
    """Trace the network and yield Torch-Pruning's dependency graph.

    Modes and requires_grad are afterwards what they were, also for layers that were cut.

    Args:
        network: unwrapped module.
        example: one input, x_BCFT.
    """
    import torch_pruning as tp

    modes = {name: module.training for name, module in network.named_modules()}
    trainable = {name: p.requires_grad for name, p in network.named_parameters()}
    try:
        for parameter in network.parameters():
            parameter.requires_grad_(True)  # tracing follows gradients
        network.eval()
        with torch.enable_grad(), torch.autocast(example.device.type, enabled=False):
            yield tp.DependencyGraph().build_dependency(network, example_inputs=example)
    finally:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trainable[name])
            parameter.grad = None
        for name, module in network.named_modules():
            module.training = modes[name]


def channel_groups(graph: Any, network: nn.Module) -> list[ChannelGroup]:
    """Return the groups that may be cut, in the order of the network; the classifier is kept."""
    names = {module: name for name, module in network.named_modules()}
    ignored = [getattr(network, "classifier", None)]
    return [
        ChannelGroup(
            layer=names[group[0].dep.target.module],
            width=len(group[0].idxs),
            coupled=group,
        )
        for group in graph.get_all_groups(
            ignored_layers=[layer for layer in ignored if layer is not None],
            root_module_types=[nn.Conv2d, nn.Linear],
        )
    ]


def score(criterion: str, groups: list[ChannelGroup]) -> list[Tensor]:
    """Return one score a channel, [width] float64 on the host, for each group.

    Raises:
        InputError: the criterion cannot tell the channels of a group apart on this network.
    """
    importance = CRITERIA[criterion]()
    scores = []
    for group in groups:
        values = importance(group.coupled).detach().double().cpu()
        if not torch.isfinite(values).all():
            raise InputError(
                f"prune.criterion={criterion}: gives scores that are not finite in {group.layer}; "
                "this network cannot be scored by it (untrained?): use another, such as magnitude"
            )
        if group.width > 1 and (values == values[0]).all():
            raise InputError(
                f"prune.criterion={criterion}: gives every channel of {group.layer} the same score, "
                "as it does on an untrained network: train first (--init), or use magnitude"
            )
        scores.append(values)
    return scores
