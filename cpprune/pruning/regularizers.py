"""Regularizers that drive whole channels towards zero before they are pruned.

A regularizer is a term of the loss that is equal on every rank, so averaging gradients over ranks does
not change it: it works under any wrapper, also where no rank holds the whole gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpprune.deps.torch import AnyBatchNorm
from cpprune.deps.torch_pruning import Item
from cpprune.models.example import example_input
from cpprune.pruning.composite import COMPOSITE, kind_of
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.groups import ChannelGroup, Graph, dependency_graph
from cpprune.pruning.prunable import chosen_groups
from shards.errors import UserError

# DepGraph's exponent: the weakest channel of a group is pulled 2^4 times as much as the strongest.
ALPHA = 4.0


@dataclass(frozen=True)
class Slice:
    """Where a group's channels lie in a parameter.

    Attributes:
        parameter: its name.
        axis: the axis that is cut.
        of_unit: [units, size of the axis], 1 where an entry belongs to a unit. A product with it adds in
            one order; `index_add` on a GPU would not.
    """

    parameter: str
    axis: int
    of_unit: Tensor


class Penalty:
    """What sparsity-inducing training adds to the loss.

    - slimming: s · Σ |γ| over BatchNorm's scaling factors (Liu et al., "Network Slimming", ICCV 2017).
    - group_norm: ½ s · Σ 2^(4 d) ‖w‖² over channels, w all weights that are cut with the channel and
      d from 0 (the strongest of its group) to 1 (the weakest) (Fang et al., "DepGraph", CVPR 2023).
    - growing: ½ s t · Σ d ‖w‖², t growing to 1 until the last cut (after Wang et al., "Neural Pruning
      via Growing Regularization", ICLR 2021).

    Args:
        network: unwrapped module; make a new penalty after every cut.
        input_shape: shape of one input, without the batch.
        config: sparsity (slimming, group_norm or growing), its strength s, and layers to ignore.
        until: epoch of the last cut.

    Raises:
        UserError: slimming, but no batch normalisation is pruned.
    """

    def __init__(
        self, network: nn.Module, input_shape: Sequence[int], config: PruneConfig, until: int
    ) -> None:
        self.kind, self.strength, self.until = config.sparsity, config.sparsity_strength, until
        self.parameters = dict(network.named_parameters())
        with dependency_graph(network, example_input(network, input_shape)) as graph:
            groups = chosen_groups(graph, network, config.ignore)
            self.slices = [(g.units, _slices(graph, network, g)) for g in groups]
        norms = {
            f"{name}.weight"
            for name, module in network.named_modules()
            if isinstance(module, AnyBatchNorm)
        }
        own = {s.parameter for _, slices in self.slices for s in slices}
        self.scales = [name for name in self.parameters if name in norms & own]
        if self.kind == "slimming" and not self.scales:
            raise UserError(
                "prune.sparsity=slimming: no layer that can be pruned has a batch normalisation with "
                "scaling factors; use group_norm or growing"
            )

    def __call__(self, epoch: Tensor) -> Tensor:
        """Return the penalty of the weights as they are, a scalar in float32.

        Args:
            epoch: from 0, a scalar on the network's device.
        """
        if self.kind == "slimming":
            values = [self.parameters[name].abs().sum() for name in self.scales]
        else:
            values = [self._group(units, slices) for units, slices in self.slices]
        penalty = self.strength * torch.stack(values).sum()
        if self.kind == "growing":
            penalty = penalty * torch.clamp((epoch + 1) / max(1, self.until), max=1.0).float()
        return penalty

    def _group(self, units: int, slices: list[Slice]) -> Tensor:
        squares = self.parameters[slices[0].parameter].new_zeros(units, dtype=torch.float32)
        for part in slices:
            weight = self.parameters[part.parameter].float().movedim(part.axis, 0)
            along = weight.flatten(1).square().sum(1) if weight.ndim > 1 else weight.square()
            squares = squares + part.of_unit @ along
        norm = squares.detach().sqrt()
        spread = norm.max() - norm.min()
        weakness = torch.where(spread > 0, (norm.max() - norm) / spread.clamp_min(1e-12), 0.0)
        pull = weakness if self.kind == "growing" else 2 ** (ALPHA * weakness)
        return 0.5 * (pull * squares).sum()


def _slices(graph: Graph, network: nn.Module, group: ChannelGroup) -> list[Slice]:
    """Return where the channels of a group lie in the network's parameters."""
    modules = {module: name for name, module in network.named_modules()}
    bare = {id(parameter): name for name, parameter in network.named_parameters()}
    found = []
    for item in group.coupled or []:
        target = item.dep.target
        makes = graph.dependencies.is_out_channel_pruning_fn(item.dep.handler)
        if isinstance(target.module, nn.Parameter):
            own = [(bare[id(target.module)], target.module, target.pruning_dim)]
        elif isinstance(target.module, COMPOSITE):
            found += _composite_slices(modules[target.module], target.module, item, group, makes)
            continue
        elif target.module in modules:
            own = [
                (name, parameter, 0 if makes else 1)
                for name, parameter in target.module.named_parameters(
                    modules[target.module], recurse=False
                )
                if makes or parameter.ndim > 1  # not the bias of a layer that reads the channels
            ]
        else:
            continue  # an operation without weights, such as an addition
        for name, parameter, axis in own:
            # Every block of a grouped convolution reads its own channels by the same columns.
            size = parameter.shape[axis]
            places = zip(item.idxs, item.root_idxs, strict=True)
            pairs = sorted({(place % size, group.unit(root)) for place, root in places})
            entries, units = torch.tensor(pairs).T
            of_unit = torch.zeros(group.units, size)
            of_unit[units, entries] = 1
            found.append(Slice(name, axis, of_unit.to(parameter.device)))
    return found


def _composite_slices(
    name: str, layer: nn.Module, item: Item, group: ChannelGroup, outputs: bool
) -> list[Slice]:
    """Return where the channels of an item lie in a layer of `COMPOSITE`."""
    found = []
    for key, axis, places in kind_of(layer).entries(layer, item.idxs, outputs=outputs):
        parameter = layer.get_parameter(key)
        of_unit = torch.zeros(group.units, parameter.shape[axis])
        for root, of_channel in zip(item.root_idxs, places, strict=True):
            of_unit[group.unit(root), of_channel] = 1
        found.append(Slice(f"{name}.{key}" if name else key, axis, of_unit.to(parameter.device)))
    return found
