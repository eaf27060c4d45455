"""What is cut: a plan is data, made once and applied by every rank."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpprune.complexity import BYTES_PER_PARAMETER, count_macs, count_parameters
from cpprune.distributed import structure
from cpprune.models.cp_resnet import conv_widths
from cpprune.pruning.budget import (
    Widths,
    allocate,
    bounds,
    cost_model,
    lowest_first,
    parse_budget,
    uniform,
)
from cpprune.pruning.criteria import channel_groups, dependency_graph, score
from cpprune.pruning.surgery import apply_plan

Plan = dict[str, Any]


def make_plan(
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    criterion: str,
    scope: str,
    original_widths: Mapping[str, int],
    ratio: float | None = None,
    budget: str | None = None,
    part: float = 1.0,
    min_width: int = 1,
    round_to: int = 1,
    saliency: Mapping[str, Tensor] | None = None,
) -> Plan:
    """Decide which channels stay.

    Args:
        network: unwrapped module; it is not changed.
        input_shape: shape of one input, without the batch.
        criterion: see `CRITERIA`.
        scope: "local": the same part of every group; "global": the lowest scores of all.
        original_widths: output channels by layer at the start of the run.
        ratio: part of the original channels that is cut at the end of the schedule.
        budget: limits that hold at the end of the schedule, instead of a ratio.
        part: how much of the way to the end this plan goes.
        min_width: no group gets narrower than this.
        round_to: widths are multiples of this.
        saliency: for taylor and hessian, what `cpprune.pruning.saliency` measured.

    Returns:
        `structure` (fingerprint of the network that the plan is for), `criterion`, `scope`, and
        `groups`: for each `layer` its `width`, the channels to `keep` (sorted), and the lowest and
        highest score kept and cut.

    Raises:
        InputError: the criterion does not work on this network, or no widths meet the budget.
    """
    device = next(network.parameters()).device
    example = torch.zeros(1, *input_shape, device=device)
    scored = network if saliency is None else _with_parameters(network, saliency)
    with dependency_graph(scored, example) as graph:
        groups = channel_groups(graph, scored)
        scores = score(criterion, groups)
    originals = [original_widths[group.layer] for group in groups]
    allowed = bounds([group.width for group in groups], min_width, round_to)

    def narrowing(cut: float) -> Widths:
        if scope == "local":
            return uniform(originals, cut)
        return lowest_first(scores, max(1, math.floor(sum(originals) * (1 - cut) + 1e-9)))

    if budget is None:
        assert ratio is not None
        target = allowed.fit(narrowing(ratio * part))
    else:
        costs = cost_model(network, input_shape, groups)
        end = allocate(costs, parse_budget(budget), allowed, narrowing)
        way = np.rint(np.array(originals) - (np.array(originals) - end) * part).astype(np.int64)
        target = np.maximum(end, allowed.fit(way))
    entries = [
        _entry(group.layer, values, int(count))
        for group, values, count in zip(groups, scores, target, strict=True)
    ]
    return {
        "structure": structure(network),
        "criterion": criterion,
        "scope": scope,
        "groups": entries,
    }


def _with_parameters(network: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(values[name])
    return twin


def _entry(layer: str, scores: Tensor, count: int) -> dict[str, Any]:
    # Stable, so that equal scores keep the earlier channel on every machine.
    ranking = torch.sort(scores, descending=True, stable=True).indices
    keep, cut = sorted(ranking[:count].tolist()), ranking[count:].tolist()

    def bounds(channels: list[int]) -> list[float] | None:
        return [float(scores[channels].min()), float(scores[channels].max())] if channels else None

    return {
        "layer": layer,
        "width": len(scores),
        "keep": keep,
        "score_kept": bounds(keep),
        "score_cut": bounds(cut),
    }


def describe(network: nn.Module, input_shape: Sequence[int]) -> dict[str, Any]:
    """Return parameters, macs and bytes by dtype of a network."""
    parameters = count_parameters(network)
    return {
        "parameters": parameters,
        "macs": count_macs(network, input_shape),
        "bytes": {dtype: parameters * width for dtype, width in BYTES_PER_PARAMETER.items()},
    }


def preview(
    network: nn.Module, input_shape: Sequence[int], plans: Sequence[Plan]
) -> dict[str, Any]:
    """Return what plans applied one after the other would do, without changing the network.

    Returns:
        `before` and `after`, as `describe` gives them, and `layers`: name, width before and after.
    """
    twin = copy.deepcopy(network)
    before = conv_widths(twin)
    summary = {"before": describe(twin, input_shape)}
    for plan in plans:
        apply_plan(twin, input_shape, plan)
    after = conv_widths(twin)
    return {
        **summary,
        "after": describe(twin, input_shape),
        "layers": [
            {"name": name, "before": width, "after": after[name]} for name, width in before.items()
        ],
    }
