"""Which channel groups are prunable: one unit of each is removed from a copy, and the outputs compared.

No layer is recognised by name or kind. The classifier is found because the number of outputs falls,
attention heads because a reshape fails. A group is prunable only if removing channels is the same as
zeroing them: the pruned copy must give the outputs of one whose removed entries are zero.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized

from cpprune.models.intercept import AlwaysDouble
from cpprune.models.resize import LAYERS, fit
from cpprune.pruning.composite import COMPOSITE, why_uncut
from cpprune.pruning.groups import (
    ChannelGroup,
    Graph,
    coupled_groups,
    dependency_graph,
    in_equal_parts,
    lost_at,
    pruned_layers,
    remove_channels,
)
from cpprune.pruning.patterns import matching_layers
from cpprune.pruning.regrouped import regrouped
from cpprune.pruning.trial_arithmetic import TrialArithmetic
from shards.errors import UserError, one_line

OUTPUTS = "makes the outputs of the network"
CUT_ALREADY = "is cut already with another group"


def prunable_groups(graph: Graph, network: nn.Module) -> list[ChannelGroup]:
    """Return the prunable groups.

    Raises:
        UserError: there is none.
    """
    groups, not_prunable = classify_groups(graph, network)
    if not groups:
        reasons = "; ".join(f"{layer} {reason}" for layer, reason in not_prunable.items())
        raise UserError(f"nothing in this network can be cut: {reasons or 'it has no layers'}")
    return groups


def chosen_groups(
    graph: Graph,
    network: nn.Module,
    ignore: Sequence[str],
    groups: Sequence[ChannelGroup] | None = None,
) -> list[ChannelGroup]:
    """Return the prunable groups without those that hold a layer of `ignore`.

    Args:
        graph: the network's, from `dependency_graph`.
        network: unwrapped module.
        ignore: names or patterns of layers, as in a shell: `stage1.*`.
        groups: from `prunable_groups`, if they are known.

    Raises:
        UserError: a pattern fits no layer, or no group is left.
    """
    ignored = set().union(*(matching_layers(network, p, "prune.ignore") for p in ignore))
    groups = [
        group
        for group in (prunable_groups(graph, network) if groups is None else groups)
        if ignored.isdisjoint(pruned_layers(graph, network, group, all_channels=False))
    ]
    if not groups:
        raise UserError(f"prune.ignore={list(ignore)}: leaves nothing that can be cut")
    return groups


def classify_groups(graph: Graph, network: nn.Module) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Return the prunable groups, and for each of the others, by its layer, why it is not pruned.

    Groups that are already as narrow as possible count as prunable. Every convolution and linear layer
    is pruned with one of the groups, or has a reason.
    """
    trial = _TrialPruning(network, graph.example)
    unusual = _unusual_weights(network)
    names = {module: name for name, module in network.named_modules()}
    groups: list[ChannelGroup] = []
    not_prunable: dict[str, str] = {}
    coupled: dict[str, str] = {}
    for group in coupled_groups(graph, network):
        members = pruned_layers(graph, network, group, all_channels=False)
        narrowest = group.coupled is not None and group.units == 1
        touched = [names.get(item.dep.target.module) for item in group.coupled or []]
        lost = lost_at(graph, network, group)
        odd = next((name for name in touched if name in unusual), None)
        if odd is not None:
            reason: str | None = f"is coupled with {odd}, which " if odd != group.layer else ""
            reason = f"{reason}{unusual[odd]}"
        elif lost is not None:
            reason = (
                f"has channels that reach {lost} reshaped, reduced or along another axis, which is not "
                "followed"
            )
        else:
            reason = None if narrowest else trial.remove_unit(group, members)
            if reason not in (None, OUTPUTS, CUT_ALREADY):
                for other in regrouped(graph, network, group):
                    if trial.remove_unit(other, members) is None:
                        group, reason = other, None
                        break
        if reason is None:
            groups.append(group)
            pruned = pruned_layers(graph, network, group, all_channels=True)
            parts = [
                f"{name}.{part}"
                for name in touched
                if name is not None and isinstance(network.get_submodule(name), COMPOSITE)
                for part, _ in network.get_submodule(name).named_children()
            ]
            coupled |= dict.fromkeys([*pruned, *parts], "")
            for name in pruned:  # what was not enough by itself
                not_prunable.pop(name, None)
        else:
            not_prunable[group.layer] = reason
            for name in members:
                coupled.setdefault(name, f"is coupled with {group.layer}, which is not pruned")
    for name, module in network.named_modules():
        if isinstance(module, LAYERS) and name not in not_prunable:
            reason = coupled.get(name, _why_in_no_group(graph, network, name))
            if reason:
                not_prunable[name] = reason
    return groups, not_prunable


def _why_in_no_group(graph: Graph, network: nn.Module, name: str) -> str:
    """Return why a layer is neither cut nor coupled with one that is not."""
    traced = graph.dependencies.module2node
    if network.get_submodule(name) in traced:
        return "is coupled in part only"
    parents = [name[:at] for at, letter in enumerate(name) if letter == "."]
    whole = [parent for parent in parents if network.get_submodule(parent) in traced]
    return f"is a part of {whole[-1]}, which keeps its width" if whole else "is not used"


def _unusual_weights(network: nn.Module) -> dict[str, str]:
    """Return why Torch-Pruning cannot cut the weights of some layers."""
    uncut = {n: why_uncut(module) for n, module in network.named_modules()}
    owners = Counter(p for m in network.modules() for p in m.parameters(recurse=False))
    return {n: reason for n, reason in uncut.items() if reason} | {
        name: "has a parametrised weight" if is_parametrized(module) else "shares weights"
        for name, module in network.named_modules()
        if is_parametrized(module) or any(owners[p] > 1 for p in module.parameters(recurse=False))
    }


class _TrialPruning:
    """A copy of the network on the host, in float64 with random weights, that is pruned group by group.

    Each entry of the pruned copy's parameters holds its own index in the whole network, so what was
    removed can be read off.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        try:
            twin = copy.deepcopy(network)
        except RuntimeError as error:
            raise UserError(
                f"the network cannot be copied once it was run ({' '.join(str(error).split())[:120]}), "
                "so it cannot be pruned: it must not keep what it computes"
            ) from None
        self.whole = twin.cpu().double().eval()
        randomise(self.whole, generator)
        self.x = torch.randn(1, *example.shape[1:], generator=generator, dtype=torch.float64)
        self.arithmetic = TrialArithmetic()
        logits = self._outputs(self.whole, dict(self.whole.named_parameters()))
        if not isinstance(logits, Tensor):
            raise UserError(
                f"the network must return its logits as one tensor, not {type(logits).__name__}"
            )
        self.shape = logits.shape
        self.removed: dict[str, list[int]] = {}
        self.cut: set[str] = set()
        self.twin, self.rebuilt = copy.deepcopy(self.whole), copy.deepcopy(self.whole)
        with dependency_graph(self.twin, self.x) as graph:
            self.graph = graph
        with torch.no_grad():
            for parameter in self.twin.parameters():
                numbers = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.copy_(numbers.view_as(parameter))

    def remove_unit(self, group: ChannelGroup, members: Sequence[str]) -> str | None:
        """Remove a unit of the group, with those of the groups before; return why it is not prunable.

        Args:
            group: one of the network's.
            members: layers that lose output channels with it.
        """
        channels = group.channels([group.units // 2])
        if group.layer in self.cut:
            return CUT_ALREADY
        try:
            if group.coupled and not in_equal_parts(self.graph, self.twin, group):
                return "has channels that are coupled with each other, but not in equal parts"
            removed = {**self.removed, group.layer: channels}
            with _restored(self.twin):
                remove_channels(self.graph, self.twin, removed)
                reason = self._fault()
        except Exception as error:  # the network may be anyone's, and fail in any way
            reason = f"cannot lose a channel ({one_line(error, 160)})"
        if reason is None:
            self.removed = removed
            self.cut.update(members)
        return reason

    def _fault(self) -> str | None:
        """Return what is wrong with the pruned copy, or None."""
        self.arithmetic.fewer.clear()
        kept = {name: p.detach().long() for name, p in self.twin.named_parameters()}
        values = {name: p.detach().flatten() for name, p in self.whole.named_parameters()}
        fit(self.rebuilt, self.twin.state_dict())
        self.rebuilt.load_state_dict(self.twin.state_dict())
        outputs = self._outputs(self.rebuilt, {name: values[name][kept[name]] for name in kept})
        if outputs.shape != self.shape:
            return OUTPUTS
        zeroed = {}
        for name, value in values.items():
            zeroed[name] = torch.zeros_like(value)
            zeroed[name][kept[name]] = value[kept[name]]
            zeroed[name] = zeroed[name].view_as(self.whole.get_parameter(name))
        expected = self._outputs(self.whole, zeroed)
        if not (outputs - expected).abs().max() <= 1e-6 * expected.abs().max():
            return "is mixed with other channels in a way that a cut does not follow"
        return None

    def _outputs(self, network: nn.Module, parameters: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad(), AlwaysDouble(), self.arithmetic:
            outputs: Tensor = functional_call(network, dict(parameters), (self.x,))
        return outputs


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Put back what is done to the attributes, parameters and buffers of a network."""
    dictionaries = [
        own
        for module in network.modules()
        for own in (vars(module), *(vars(module)[key] for key in ("_parameters", "_buffers")))
    ]
    before = [dict(own) for own in dictionaries]
    try:
        yield
    finally:
        for own, content in zip(dictionaries, before, strict=True):
            own.clear()
            own.update(content)


@torch.no_grad()
def randomise(network: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter and statistic a random value, in place: many initial ones are zero."""
    for tensor in network.parameters():
        values = torch.empty(tensor.shape, dtype=tensor.dtype)
        if tensor.ndim > 1:
            fan_in = tensor.numel() // max(1, len(tensor))
            values.normal_(0, 1 / math.sqrt(max(1, fan_in)), generator=generator)
        else:
            values.uniform_(0.5, 1.5, generator=generator)
        tensor.copy_(values)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            values = torch.empty(buffer.shape, dtype=buffer.dtype)
            buffer.copy_(values.uniform_(0.5, 1.5, generator=generator))
