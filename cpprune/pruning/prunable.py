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
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized

from cpprune.models.changes import change_attributes
from cpprune.models.intercept import AlwaysDouble
from cpprune.models.resize import LAYERS, fit
from cpprune.pruning.attributes import with_attributes
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
    # First, since it refuses what cannot be copied before anything takes long.
    trial = _TrialPruning(graph, network)
    names = {module: name for name, module in network.named_modules()}
    candidates = coupled_groups(graph, network)
    refused = _refused_untried(graph, network, candidates)
    narrowest = {one.layer for one in candidates if one.coupled is not None and one.units == 1}
    wide = [one for one in candidates if one.layer not in refused.keys() | narrowest]
    # The last one makes the outputs, most often.
    tried = trial.remove_units(wide[:-1]) | trial.remove_units(wide[-1:])
    groups: list[ChannelGroup] = []
    not_prunable: dict[str, str] = {}
    coupled: dict[str, str] = {}
    for candidate in candidates:
        layer = candidate.layer
        group, reason = tried.get(layer, (candidate, refused.get(layer)))
        if reason is None:
            groups.append(group)
            pruned = pruned_layers(graph, network, group, all_channels=True)
            touched = [names.get(item.dep.target.module) for item in group.coupled or []]
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
            not_prunable[layer] = reason
            for name in pruned_layers(graph, network, group, all_channels=False):
                coupled.setdefault(name, f"is coupled with {layer}, which is not pruned")
    for name, module in network.named_modules():
        if isinstance(module, LAYERS) and name not in not_prunable:
            reason = coupled.get(name, _why_in_no_group(graph, network, name))
            if reason:
                not_prunable[name] = reason
    return groups, not_prunable


def _refused_untried(
    graph: Graph, network: nn.Module, groups: Sequence[ChannelGroup]
) -> dict[str, str]:
    """Return why some groups need no trial to be refused, by their layers."""
    unusual = _unusual_weights(network)
    names = {module: name for name, module in network.named_modules()}
    refused: dict[str, str] = {}
    for group in groups:
        touched = [names.get(item.dep.target.module) for item in group.coupled or []]
        odd = next((name for name in touched if name in unusual), None)
        if odd is not None:
            coupling = f"is coupled with {odd}, which " if odd != group.layer else ""
            refused[group.layer] = f"{coupling}{unusual[odd]}"
        elif (lost := lost_at(graph, network, group)) is not None:
            refused[group.layer] = (
                f"has channels that reach {lost} reshaped, reduced or along another axis, which is not "
                "followed"
            )
    return refused


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
    """A copy of the network on the host, in float64 with random weights, that is pruned.

    Each entry of the pruned copy's parameters holds its own index in the whole network, so what was
    removed can be read off.
    """

    def __init__(self, graph: Graph, network: nn.Module) -> None:
        self.of, self.network = graph, network
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
        self.x = torch.randn(1, *graph.example.shape[1:], generator=generator, dtype=torch.float64)
        self.arithmetic = TrialArithmetic()
        logits = self._outputs(self.whole, dict(self.whole.named_parameters()))
        if not isinstance(logits, Tensor):
            raise UserError(
                f"the network must return its logits as one tensor, not {type(logits).__name__}"
            )
        self.shape = logits.shape
        self.removed: dict[str, list[int]] = {}
        self.cut: set[str] = set()
        self.attributes: dict[str, int] = {}
        # By the structure of groups: which of `_others` can be cut, or that none can.
        self.ways: dict[str, int] = {}
        self.stuck: set[str] = set()
        self.twin, self.rebuilt = copy.deepcopy(self.whole), copy.deepcopy(self.whole)
        with dependency_graph(self.twin, self.x) as own:
            self.graph = own
        with torch.no_grad():
            for parameter in self.twin.parameters():
                numbers = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.copy_(numbers.view_as(parameter))

    def remove_units(
        self, groups: Sequence[ChannelGroup]
    ) -> dict[str, tuple[ChannelGroup, str | None]]:
        """Remove a unit of each group, together with those of the groups before.

        All are tried at once, in the way in which isomorphic ones before them could be cut; where that
        fails, each half is tried by itself.

        Returns:
            by layer, the group with the units that can be removed, or the reason why none can.
        """
        alike = [self._like_those_before(group) for group in groups]
        reason = self._remove(alike) if groups else None
        if reason is None:
            return {group.layer: (group, None) for group in alike}
        if len(groups) > 1:
            half = len(groups) // 2
            return self.remove_units(groups[:half]) | self.remove_units(groups[half:])
        (group,) = groups
        if alike != [group]:
            reason = self._remove([group])
        if reason not in (None, OUTPUTS, CUT_ALREADY):
            for number, other in enumerate(self._others(group)):
                if self._remove([other]) is None:
                    self.ways[group.structure] = number
                    return {group.layer: (other, None)}
            if group.structure not in self.ways:
                self.stuck.add(group.structure)
        return {group.layer: (group, reason)}

    def _like_those_before(self, group: ChannelGroup) -> ChannelGroup:
        number = self.ways.get(group.structure)
        if number is None:
            return group
        return next(islice(self._others(group), number, None), group)

    def _others(self, group: ChannelGroup) -> Iterator[ChannelGroup]:
        """Yield the group with attributes that follow a cut, then with other pruning units.

        No attributes are tried again that were of no use to an isomorphic group.
        """
        stuck = group.structure in self.stuck
        yield from () if stuck else with_attributes(self.network, group)
        for other in regrouped(self.of, self.network, group):
            yield other
            yield from () if stuck else with_attributes(self.network, other)

    def _remove(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Remove a unit of every group; return why one of them is not prunable, so that none is cut."""
        removed, cut, attributes = dict(self.removed), set(self.cut), dict(self.attributes)
        try:
            for group in groups:
                if group.layer in cut:
                    return CUT_ALREADY
                if group.coupled and not in_equal_parts(self.graph, self.twin, group):
                    return "has channels that are coupled with each other, but not in equal parts"
                if not attributes.keys().isdisjoint(dict(group.attributes)):
                    return "has an attribute of the code in common with another group"
                removed[group.layer] = group.channels([group.units // 2])
                attributes |= group.attributes_of(group.units - 1)
                cut.update(pruned_layers(self.of, self.network, group, all_channels=False))
            with _restored(self.twin), _restored(self.rebuilt):
                remove_channels(self.graph, self.twin, removed)
                change_attributes(self.rebuilt, attributes)
                reason = self._fault()
        except Exception as error:  # the network may be anyone's, and fail in any way
            reason = f"cannot lose a channel ({one_line(error, 160)})"
        if reason is None:
            self.removed, self.cut, self.attributes = removed, cut, attributes
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
