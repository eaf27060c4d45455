"""Which channel groups are prunable: one unit of each is removed from a copy, and the outputs compared.

No layer is recognised by name or kind. The classifier is found because the number of outputs falls,
attention heads because a reshape fails. A group is prunable only if removing channels is the same as
zeroing them: the pruned copy must give the outputs of one whose removed entries are zero.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cpprune.models.resize import fit, output_width
from cpprune.pruning.groups import (
    ChannelGroup,
    Graph,
    coupled_groups,
    coupled_outputs,
    dependency_graph,
    exceeds_width,
    remove_channels,
)
from shards.errors import UserError


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


def classify_groups(graph: Graph, network: nn.Module) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Return the prunable groups, and for each of the others, by its layer, why it is not pruned.

    Groups that are already as narrow as possible count as prunable.
    """
    trial = _TrialPruning(network, graph.example)
    groups, not_prunable = [], {}
    for group in coupled_groups(graph, network):
        narrowest = group.coupled is not None and group.width == group.blocks
        if exceeds_width(graph, group):
            reason: str | None = "is taken for another axis than that of the channels"
        else:
            reason = None if narrowest else trial.remove_unit(group)
        if reason is None:
            groups.append(group)
        else:
            not_prunable[group.layer] = reason
    return groups, not_prunable


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
        self.whole = _randomised(twin.cpu().double().eval(), generator)
        self.x = torch.randn(1, *example.shape[1:], generator=generator, dtype=torch.float64)
        logits = self._outputs(self.whole, dict(self.whole.named_parameters()))
        if not isinstance(logits, Tensor):
            raise UserError(
                f"the network must return its logits as one tensor, not {type(logits).__name__}"
            )
        self.shape = logits.shape
        self.removed: list[tuple[str, list[int]]] = []
        self._start()

    def _start(self) -> None:
        self.twin, self.rebuilt = copy.deepcopy(self.whole), copy.deepcopy(self.whole)
        with dependency_graph(self.twin, self.x) as graph:
            self.graph = graph
        with torch.no_grad():
            for parameter in self.twin.parameters():
                numbers = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.copy_(numbers.view_as(parameter))
        for layer, channels in self.removed:
            remove_channels(self.graph, self.twin, layer, channels)

    def remove_unit(self, group: ChannelGroup) -> str | None:
        """Remove a unit of the group; return why it is not prunable, or None."""
        channels = group.channels([group.width // group.blocks // 2])
        layer = self.twin.get_submodule(group.layer)
        if output_width(layer) != group.width:
            return "is cut already with another group"
        try:
            if coupled_outputs(self.graph, self.twin, group.layer, channels) != channels:
                return "loses more of its channels than those that are cut"
            remove_channels(self.graph, self.twin, group.layer, channels)
            reason = self._fault()
        except Exception as error:  # the network may be anyone's, and fail in any way
            text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            reason = f"cannot lose a channel ({text})"
        if reason is None:
            self.removed.append((group.layer, channels))
        else:
            self._start()
        return reason

    def _fault(self) -> str | None:
        """Return what is wrong with the pruned copy, or None."""
        kept = {name: p.detach().long() for name, p in self.twin.named_parameters()}
        values = {name: p.detach().flatten() for name, p in self.whole.named_parameters()}
        fit(self.rebuilt, self.twin.state_dict())
        self.rebuilt.load_state_dict(self.twin.state_dict())
        outputs = self._outputs(self.rebuilt, {name: values[name][kept[name]] for name in kept})
        if outputs.shape != self.shape:
            return "makes the outputs of the network"
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
        with torch.no_grad(), _BoundedNorms():
            outputs: Tensor = functional_call(network, dict(parameters), (self.x,))
        return outputs


def _randomised(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give every parameter and statistic a random value: many initial ones are zero."""
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.ndim > 1:
                fan_in = tensor.numel() // max(1, len(tensor))
                tensor.normal_(0, 1 / math.sqrt(max(1, fan_in)), generator=generator)
            else:
                tensor.uniform_(0.5, 1.5, generator=generator)
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return network


class _BoundedNorms(TorchFunctionMode):
    """Replaces norms by a bounded function of each value, which does not depend on other channels.

    The norms are called nonetheless, for the errors that they raise. Without bounds, random weights make
    a deep network chaotic: rounding alone would make the outputs differ.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is functional.batch_norm:
            return result.tanh()
        if func not in (functional.layer_norm, functional.rms_norm, functional.group_norm):
            return result
        bound = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
        x: Tensor = bound["input"].tanh()
        ones = (1,) * (x.ndim - 2) if func is functional.group_norm else ()
        weight, bias = bound.get("weight"), bound.get("bias")
        if weight is not None:
            x = x * weight.view(*weight.shape, *ones)
        return x if bias is None else x + bias.view(*bias.shape, *ones)
