"""What plans would do to a network: sizes, and widths of layers, before and after."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from cpprune.evaluation.complexity import (
    BYTES_PER_PARAMETER,
    count_macs,
    count_parameters,
    layer_costs,
)
from cpprune.models.example import example_input
from cpprune.pruning.groups import dependency_graph
from cpprune.pruning.plan import Plan
from cpprune.pruning.planner import Measure
from cpprune.pruning.prunable import classify_groups
from cpprune.pruning.surgery import apply_plan


def preview(
    network: nn.Module,
    input_shape: Sequence[int],
    plans: Sequence[Plan],
    measure: Measure | None = None,
) -> dict[str, Any]:
    """Return what plans applied one after the other would do; the network is not changed.

    Args:
        network: unwrapped module.
        input_shape: shape of one input, without the batch.
        plans: in the order in which they are applied.
        measure: adds `latency_ms` to `before` and `after`.

    Returns:
        What `prune --dry-run --json` prints: `before` and `after`, each with `parameters`, `macs` and
        `bytes` by dtype; `layers`, each with its `name`, its width, parameters and macs before and
        after, and, where it names a group, the range of scores that the last plan keeps and cuts;
        `left_alone`: for each group that is not prunable, by its layer, the reason.
    """
    twin = copy.deepcopy(network)
    with dependency_graph(twin, example_input(twin, input_shape)) as graph:
        _, not_prunable = classify_groups(graph, twin)
    before, layers_before = _costs(twin, input_shape, measure), layer_costs(twin, input_shape)
    for plan in plans:
        apply_plan(twin, input_shape, plan)
    layers_after = layer_costs(twin, input_shape)
    kept = {entry.layer: entry.score_kept for entry in plans[-1].groups} if plans else {}
    cut = {entry.layer: entry.score_cut for entry in plans[-1].groups} if plans else {}
    layers = []
    for name, (width, parameters, macs) in layers_before.items():
        width_after, parameters_after, macs_after = layers_after[name]
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
        "after": _costs(twin, input_shape, measure),
        "layers": layers,
        "left_alone": not_prunable,
    }


def _range(scores: tuple[float, float] | None) -> list[float] | None:
    return None if scores is None else list(scores)


def _costs(
    network: nn.Module, input_shape: Sequence[int], measure: Measure | None
) -> dict[str, Any]:
    parameters = count_parameters(network)
    device = next(network.parameters()).device
    return {
        "parameters": parameters,
        "macs": count_macs(network, input_shape),
        "bytes": {dtype: parameters * width for dtype, width in BYTES_PER_PARAMETER.items()},
        **({"latency_ms": measure(network, input_shape, device)} if measure else {}),
    }
