"""Applying a plan to a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cpprune.distributed import structure
from cpprune.pruning.criteria import dependency_graph
from shards.errors import InputError


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
    import torch_pruning as tp

    if plan["structure"] != structure(network):
        raise InputError(
            "the pruning plan was made for a network of another structure (or is applied already): "
            "make a plan for this one"
        )
    device = next(network.parameters()).device
    modules = dict(network.named_modules())
    with dependency_graph(network, torch.zeros(1, *input_shape, device=device)) as graph:
        for entry in plan["groups"]:
            keep = set(entry["keep"])
            cut = [channel for channel in range(entry["width"]) if channel not in keep]
            if not cut:
                continue
            module = modules[entry["layer"]]
            prune = (
                tp.prune_linear_out_channels
                if isinstance(module, nn.Linear)
                else tp.prune_conv_out_channels
            )
            graph.get_pruning_group(module, prune, idxs=cut).prune()
