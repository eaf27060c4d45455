"""What plans would do to a network: sizes, and widths of layers, before and after."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from cpprune.evaluation.complexity import count_macs, count_parameters, latency, layer_costs
from cpprune.evaluation.dtypes import BYTES_PER_PARAMETER
from cpprune.evaluation.operations import count_operations
from cpprune.models.example import example_input
from cpprune.pruning.budget import Limit
from cpprune.pruning.groups import dependency_graph, pruned_layers
from cpprune.pruning.measured import Measure, amount
from cpprune.pruning.plan import Plan, without_blocks
from cpprune.pruning.prunable import classify_groups
from cpprune.pruning.surgery import apply_plan


def preview(
    network: nn.Module,
    input_shape: Sequence[int],
    plans: Sequence[Plan],
    limits: Sequence[Limit] = (),
    measure: Measure = latency,
) -> dict[str, Any]:
    """Return what plans applied one after the other would do; the network is not changed.

    Args:
        network: unwrapped module.
        input_shape: shape of one input, without the batch.
        plans: in the order in which they are applied.
        limits: of a budget; what they limit is measured where it is not counted anyway.
        measure: how a latency is measured, on the network's device.

    Returns:
        What `prune --dry-run --json` prints: `before` and `after`, each with `parameters`, `macs`,
        `operations`, `bytes` by dtype and, where they are limited, `latency_ms`, and values of other
        quantities by form (`Quantity.key`); `layers`, each with its `name`, its width, parameters and
        macs before and after, and, where it names a group, the range of scores that the last plan keeps
        and cuts; `left_alone`: for each group that is not prunable, by its layer, the reason;
        `removed_blocks`, each with its `name` and `score`.
    """
    twin = copy.deepcopy(network)
    blocks = [block for plan in plans for block in plan.removed_blocks]
    left = without_blocks(twin, blocks)
    with dependency_graph(left, example_input(left, input_shape)) as graph:
        groups, not_prunable = classify_groups(graph, left)
        narrow = {
            name: "is as narrow as it can be"
            + (f": one channel in each of {g.blocks} equal parts" if g.blocks > 1 else "")
            for g in groups
            if g.units == 1
            for name in pruned_layers(graph, left, g)
        }
        planned = {entry.layer for plan in plans for entry in plan.groups}
        for group in groups if planned or not blocks else ():
            if group.layer not in planned:
                spared = pruned_layers(graph, left, group)
                not_prunable |= dict.fromkeys(spared, "is not in the plan (prune.ignore)")
        not_prunable |= narrow
    before, layers_before = (
        _costs(twin, input_shape, limits, measure),
        layer_costs(twin, input_shape),
    )
    for plan in plans:
        apply_plan(twin, input_shape, plan)
    layers_after = layer_costs(twin, input_shape)
    kept = {entry.layer: entry.score_kept for entry in plans[-1].groups} if plans else {}
    cut = {entry.layer: entry.score_cut for entry in plans[-1].groups} if plans else {}
    layers = []
    for name, (width, parameters, macs) in layers_before.items():
        width_after, parameters_after, macs_after = layers_after.get(name, (0, 0, 0))
        layers.append(
            {
                "name": name,
                "before": width,
                "after": width_after,
                "parameters_before": parameters,
                "parameters_after": parameters_after,
                "macs_before": macs,
                "macs_after": macs_after,
                "score_kept": _range(kept.get(name)),
                "score_cut": _range(cut.get(name)),
            }
        )
    return {
        "before": before,
        "after": _costs(twin, input_shape, limits, measure),
        "layers": layers,
        "left_alone": not_prunable,
        "removed_blocks": [asdict(block) for block in blocks],
    }


def _range(scores: tuple[float, float] | None) -> list[float] | None:
    return None if scores is None else list(scores)


def _costs(
    network: nn.Module,
    input_shape: Sequence[int],
    limits: Sequence[Limit],
    measure: Measure,
) -> dict[str, Any]:
    parameters = count_parameters(network)
    costs: dict[str, Any] = {
        "parameters": parameters,
        "macs": count_macs(network, input_shape),
        "operations": count_operations(network, input_shape),
        "bytes": {dtype: parameters * width for dtype, width in BYTES_PER_PARAMETER.items()},
    }
    for limit in {limit.quantity: limit for limit in limits}.values():
        if limit.quantity == "latency":
            costs["latency_ms"] = amount(limit, network, input_shape, measure)
        elif limit.about.key:
            found = costs.setdefault(limit.about.key, {})
            found[limit.form] = amount(limit, network, input_shape)
    return costs
