"""What is cut: a plan is data, made once and applied by every rank."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cpprune.complexity import BYTES_PER_PARAMETER, count_macs, count_parameters
from cpprune.distributed import structure
from cpprune.models.cp_resnet import conv_widths
from cpprune.pruning.criteria import channel_groups, dependency_graph, score
from cpprune.pruning.schedule import channels_left
from cpprune.pruning.surgery import apply_plan

Plan = dict[str, Any]


def make_plan(
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    criterion: str,
    scope: str,
    ratio: float,
    original_widths: Mapping[str, int],
) -> Plan:
    """Decide which channels stay.

    Args:
        network: unwrapped module; it is not changed.
        input_shape: shape of one input, without the batch.
        criterion: see `CRITERIA`.
        scope: "local" or "global".
        ratio: part of the original channels that is gone afterwards.
        original_widths: output channels by layer at the start of the run.

    Returns:
        `structure` (fingerprint of the network that the plan is for), `criterion`, `scope`, `ratio`,
        and `groups`: for each `layer` its `width`, the channels to `keep` (sorted), and the lowest
        and highest score kept and cut.

    Raises:
        InputError: the criterion does not work on this network.
    """
    device = next(network.parameters()).device
    example = torch.zeros(1, *input_shape, device=device)
    with dependency_graph(network, example) as graph:
        groups = channel_groups(graph, network)
        scores = score(criterion, groups)
        originals = [original_widths[group.layer] for group in groups]
        widths = [group.width for group in groups]
        if scope == "local":
            counts = [
                min(width, channels_left(original, ratio))
                for width, original in zip(widths, originals, strict=True)
            ]
        else:
            counts = _global_counts(scores, channels_left(sum(originals), ratio))
        entries = [
            _entry(group.layer, values, count)
            for group, values, count in zip(groups, scores, counts, strict=True)
        ]
    return {
        "structure": structure(network),
        "criterion": criterion,
        "scope": scope,
        "ratio": ratio,
        "groups": entries,
    }


def _global_counts(scores: Sequence[Tensor], total: int) -> list[int]:
    """Return how many channels each group keeps when `total` of all stay: at least one in each."""
    best = [int(values.argmax()) for values in scores]
    pool = [
        (-float(value), group, channel)
        for group, values in enumerate(scores)
        for channel, value in enumerate(values)
        if channel != best[group]
    ]
    counts = [1] * len(scores)
    for _, group, _ in sorted(pool)[: max(0, total - len(scores))]:
        counts[group] += 1
    return counts


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
