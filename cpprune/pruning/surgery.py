"""Applying a plan to a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cpprune.distributed.collectives import structure
from cpprune.pruning.groups import dependency_graph, remove_channels
from shards.errors import InputError


def kept_entries(
    network: nn.Module, input_shape: Sequence[int], plan: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return, for each parameter, which of its entries the plan keeps.

    The plan is applied to a twin whose parameters hold the numbers of their own entries, so whatever
    the cut does to a parameter is read off it, in any architecture.

    Returns:
        By name, int64 numbers into the flattened old parameter, in the shape of the new one.
    """
    twin = copy.deepcopy(network).double()
    with torch.no_grad():
        for parameter in twin.parameters():
            numbers = torch.arange(parameter.numel(), dtype=torch.float64, device=parameter.device)
            parameter.copy_(numbers.view_as(parameter))
    apply_plan(twin, input_shape, plan)
    return {name: p.detach().round().long() for name, p in twin.named_parameters()}


def carry(values: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return per-parameter tensors, such as Adam's moments, as they are after the cut.

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


def apply_plan(network: nn.Module, input_shape: Sequence[int], plan: Mapping[str, Any]) -> None:
    """Cut from the network, in place, every channel that the plan does not keep.

    Args:
        network: unwrapped module. Its parameters are new objects afterwards where they were cut;
            names, modes and requires_grad stay.
        input_shape: shape of one input, without the batch.
        plan: made by `cpprune.pruning.plan.make_plan` for a network of this structure.

    Raises:
        InputError: the plan was made for another structure, or was applied already.
    """
    if plan["structure"] != structure(network):
        raise InputError(
            "the pruning plan was made for a network of another structure (or is applied already): "
            "make a plan for this one"
        )
    parameter = next(network.parameters())
    example = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    with dependency_graph(network, example) as graph:
        for entry in plan["groups"]:
            keep = set(entry["keep"])
            cut = [channel for channel in range(entry["width"]) if channel not in keep]
            if not cut:
                continue
            remove_channels(graph, network, entry["layer"], cut)
