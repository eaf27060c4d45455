"""Which channels hang together, and how important each of them is.

Channels are grouped by Torch-Pruning's dependency graph (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023) and scored by its importance functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shards.errors import InputError


def _norm(p: int, reduction: str, normaliser: str) -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        import torch_pruning as tp

        return tp.importance.MagnitudeImportance(
            p=p, group_reduction=reduction, normalizer=normaliser
        )

    return make


def _library(name: str) -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        import torch_pruning as tp

        return getattr(tp.importance, name)()

    return make


def _random(seed: int) -> Any:
    def number(group: Any) -> Tensor:
        # Philox, so that every machine draws the same for a group of this name and width.
        layer = group[0].dep.target.name
        entropy = [seed, len(group[0].idxs), *layer.encode()]
        rng = np.random.Philox(np.random.SeedSequence(entropy))
        return torch.from_numpy(rng.random_raw(len(group[0].idxs)).astype(np.float64))

    return number


# What scores the channels of a group, made for a seed.
CRITERIA: dict[str, Callable[[int], Any]] = {
    # mean L1 norm over the tensors of the group (Li et al., ICLR 2017)
    "magnitude": _norm(1, "mean", "mean"),
    # the same with L2 (squared)
    "magnitude_l2": _norm(2, "mean", "mean"),
    # BatchNorm's scaling factors (Liu et al., "Network Slimming", ICCV 2017)
    "bn_scale": _library("BNScaleImportance"),
    # L2 norm over the whole group (Fang et al., CVPR 2023)
    "group_norm": _norm(2, "sum", "max"),
    # layer-adaptive magnitude (Lee et al., ICLR 2021)
    "lamp": _library("LAMPImportance"),
    # distance from the geometric median (He et al., CVPR 2019)
    "fpgm": _library("FPGMImportance"),
    # first- and second-order effect on the loss: see `cpprune.pruning.saliency`
    "taylor": _norm(1, "mean", "mean"),
    "hessian": _norm(1, "mean", "mean"),
    # the control of all criteria
    "random": _random,
}


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose output channels can only be cut together.

    Attributes:
        layer: name of the convolution or linear layer that stands for the group.
        width: its number of output channels.
        blocks: into how many equal blocks grouped convolutions divide them; every block loses the same
            of its channels, so a unit of cutting is this many channels.
        coupled: the group as Torch-Pruning holds it.
    """

    layer: str
    width: int
    blocks: int
    coupled: Any

    def channels(self, units: Iterable[int]) -> list[int]:
        """Return the channels of these units: the same place in every block."""
        length = self.width // self.blocks
        return sorted(b * length + unit for unit in units for b in range(self.blocks))


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
            blocks=_blocks(group),
            coupled=group,
        )
        for group in graph.get_all_groups(
            ignored_layers=[layer for layer in ignored if layer is not None],
            root_module_types=[nn.Conv2d, nn.Linear],
        )
    ]


def _blocks(group: Any) -> int:
    layers = [item.dep.target.module for item in group]
    grouped = [m for m in layers if isinstance(m, nn.Conv2d) and m.groups < m.out_channels]
    return math.lcm(*(m.groups for m in grouped)) if grouped else 1


def score(criterion: str, groups: list[ChannelGroup], seed: int = 0) -> list[Tensor]:
    """Return the scores of each group: one a unit, [width / blocks] float64 on the host.

    Args:
        criterion: see `CRITERIA`.
        groups: from `channel_groups`.
        seed: of the criterion random.

    Raises:
        InputError: the criterion cannot tell the channels of a group apart on this network.
    """
    importance = CRITERIA[criterion](seed)
    scores = []
    for group in groups:
        values = importance(group.coupled).detach().double().cpu()
        values = values.view(group.blocks, -1).mean(0)
        if not torch.isfinite(values).all():
            raise InputError(
                f"prune.criterion={criterion}: gives scores that are not finite in {group.layer}; "
                "this network cannot be scored by it (untrained?): use another, such as magnitude"
            )
        if len(values) > 1 and (values == values[0]).all():
            raise InputError(
                f"prune.criterion={criterion}: gives every channel of {group.layer} the same score, "
                "as it does on an untrained network: train first (--init), or use magnitude"
            )
        scores.append(values)
    return scores
