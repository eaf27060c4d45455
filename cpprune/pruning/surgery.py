"""Applying a plan to a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cpprune.models.example import example_input
from cpprune.models.fingerprint import structure
from cpprune.pruning.groups import dependency_graph, remove_channels
from cpprune.pruning.plan import Plan
from shards.errors import UserError


def kept_entries(network: nn.Module, input_shape: Sequence[int], plan: Plan) -> dict[str, Tensor]:
    """Return, for each parameter, which of its entries the plan keeps.

    The plan is applied to a copy in which each entry of a parameter holds its own index, so the result
    is right for any architecture.

    Returns:
        By name, int64 indices into the flattened old parameter, in the shape of the new one.
    """
    twin = copy.deepcopy(network).double()
    with torch.no_grad():
        for parameter in twin.parameters():
            numbers = torch.arange(parameter.numel(), dtype=torch.float64, device=parameter.device)
            parameter.copy_(numbers.view_as(parameter))
    apply_plan(twin, input_shape, plan)
    return {name: p.detach().round().long() for name, p in twin.named_parameters()}


def carry(values: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return per-parameter tensors, such as Adam's moments, of the kept entries.

    Args:
        values: by "parameter/name"; tensors without dimensions, such as step counts, stay.
        kept: see `kept_entries`.
    """
    return {
        key: value
        if value.ndim == 0
        else value.flatten()[kept[key.rsplit("/", 1)[0]].to(value.device)]
        for key, value in values.items()
    }


def apply_plan(network: nn.Module, input_shape: Sequence[int], plan: Plan) -> None:
    """Remove from the network, in place, every channel that the plan does not keep.

    Args:
        network: unwrapped module. Pruned parameters are new objects afterwards;
            names, modes and requires_grad stay.
        input_shape: shape of one input, without the batch.
        plan: made by `cpprune.pruning.planner.make_plan` for a network of this structure.

    Raises:
        UserError: the plan was made for another structure, or was applied already.
    """
    if plan.structure != structure(network):
        raise UserError(
            "the pruning plan was made for a network of another structure (or is applied already): "
            "make a plan for this one"
        )
    with dependency_graph(network, example_input(network, input_shape)) as graph:
        removed = {group.layer: group.removed for group in plan.groups if group.removed}
        remove_channels(graph, network, removed)
