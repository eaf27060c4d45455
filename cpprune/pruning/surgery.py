"""Applying a plan to a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cpprune.models.changes import change_attributes, remove_blocks
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
        kept: see `kept_entries`; parameters that it lacks went with their block.
    """
    names = {key: key.rsplit("/", 1)[0] for key in values}
    return {
        key: value if value.ndim == 0 else value.flatten()[kept[names[key]].to(value.device)]
        for key, value in values.items()
        if names[key] in kept
    }


def apply_plan(network: nn.Module, input_shape: Sequence[int], plan: Plan) -> None:
    """Remove from the network, in place, the plan's blocks and every channel that it does not keep.

    Args:
        network: unwrapped module. Pruned parameters are new objects afterwards;
            names, modes and requires_grad stay.
        input_shape: shape of one input, without the batch.
        plan: made by `cpprune.pruning.planner.make_plan` for a network of this structure.

    Raises:
        UserError: the plan was made for another structure, or was applied already, or names a block that
            is none.
    """
    if plan.structure != structure(network):
        raise UserError(
            "the pruning plan was made for a network of another structure (or is applied already): "
            "make a plan for this one"
        )
    try:
        remove_blocks(network, [block.name for block in plan.removed_blocks])
    except ValueError as error:
        raise _unfit(error) from None
    removed = {group.layer: group.removed for group in plan.groups if group.removed}
    if removed:
        with dependency_graph(network, example_input(network, input_shape)) as graph:
            remove_channels(graph, network, removed)
    try:
        change_attributes(network, plan.attributes)
    except ValueError as error:
        raise _unfit(error) from None


def _unfit(error: ValueError) -> UserError:
    return UserError(f"the pruning plan does not fit the network: {error}")
