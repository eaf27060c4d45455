"""Which channels a pruning step keeps: widths are allocated to groups, the best-scored channels stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cpprune.evaluation.complexity import latency
from cpprune.models.example import example_input
from cpprune.models.fingerprint import fingerprint, structure
from cpprune.pruning.allocation import (
    Widths,
    allocate,
    bounds,
    cost_model,
    lowest_first,
    meet_latency,
    parse_budget,
    uniform,
)
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.curves import read_sensitivity, unit_costs
from cpprune.pruning.groups import ChannelGroup, dependency_graph
from cpprune.pruning.importance import score
from cpprune.pruning.plan import GroupPlan, Plan
from cpprune.pruning.prunable import prunable_groups
from cpprune.pruning.ramp import scheduled_widths
from cpprune.pruning.surgery import apply_plan

# (network, input shape, device) → milliseconds for one input
Measure = Callable[[nn.Module, Sequence[int], torch.device], float]


def make_plan(
    network: nn.Module,
    input_shape: Sequence[int],
    config: PruneConfig,
    *,
    original_widths: Mapping[str, int],
    fraction: float = 1.0,
    seed: int = 0,
    saliency: Mapping[str, Tensor] | None = None,
    measure: Measure = latency,
) -> Plan:
    """Decide which channels a pruning step keeps.

    Args:
        network: unwrapped module; it is not changed.
        input_shape: shape of one input, without the batch.
        config: the ratio or budget at the end of the schedule, criterion, scope, ramp and bounds.
        original_widths: output channels by layer at the start of the run.
        fraction: of the schedule that is done after this step.
        seed: of the criterion random.
        saliency: for criteria that need gradients, from `measure_saliency`.
        measure: how a latency is measured, on the network's device.

    Raises:
        UserError: the criterion does not work on this network, no widths meet the budget, or the
            file of `prune.sensitivity` cannot be used.
    """
    groups, scores = scored_groups(network, input_shape, config, saliency, seed)
    layers = [group.layer for group in groups]
    originals = [original_widths[layer] for layer in layers]
    allowed = bounds(groups, config.min_width, config.round_to)
    costs = scores
    if config.sensitivity is not None:
        sensitivity = read_sensitivity(Path(config.sensitivity))
        costs = unit_costs(sensitivity, groups, originals, config.criterion)

    def narrowed(removed: float) -> Widths:
        if config.scope == "local":
            return uniform(originals, removed)
        total = math.floor(sum(originals) * (1 - removed) + 1e-9)
        return lowest_first(groups, costs, max(1, total))

    def plan_to(widths: Widths) -> Plan:
        return Plan(
            criterion=config.criterion,
            scope=config.scope,
            structure=structure(network),
            weights=fingerprint(network),
            groups=keep_best(groups, scores, dict(zip(layers, widths.tolist(), strict=True))),
        )

    def latency_at(widths: Widths) -> float:
        twin = copy.deepcopy(network)
        apply_plan(twin, input_shape, plan_to(widths))
        return measure(twin, input_shape, next(twin.parameters()).device)

    if config.budget is None:
        assert config.ratio is not None
        if config.ramp == "widths":
            return plan_to(allowed.fit(narrowed(config.ratio * fraction)))
        model = cost_model(network, input_shape, groups)
        end = allowed.fit(narrowed(config.ratio))
    else:
        model = cost_model(network, input_shape, groups)
        limits = parse_budget(config.budget)
        counted = [limit for limit in limits if limit.quantity != "latency"]
        end = allocate(model, counted, allowed, narrowed)
        for limit in limits:
            if limit.quantity == "latency":
                end = meet_latency(limit, end, allowed, narrowed, latency_at)
    original = np.array(originals)
    return plan_to(scheduled_widths(model, original, end, allowed, fraction, config.ramp))


def scored_groups(
    network: nn.Module,
    input_shape: Sequence[int],
    config: PruneConfig,
    saliency: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> tuple[list[ChannelGroup], list[Tensor]]:
    """Return the prunable groups and the scores of each; see `make_plan`."""
    scored = network if saliency is None else _with_parameters(network, saliency)
    with dependency_graph(scored, example_input(network, input_shape)) as graph:
        groups = prunable_groups(graph, scored)
        return groups, score(config.criterion, groups, seed, config.reduction, config.normaliser)


def _with_parameters(network: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(values[name])
    return twin


def keep_best(
    groups: Sequence[ChannelGroup], scores: Sequence[Tensor], widths: Mapping[str, int]
) -> list[GroupPlan]:
    """Return the plans that keep, of the groups in `widths`, that many of the best channels.

    Args:
        groups: from `scored_groups`.
        scores: of these groups.
        widths: channels to keep, by layer.
    """
    return [
        _keep_best(group, values, widths[group.layer])
        for group, values in zip(groups, scores, strict=True)
        if group.layer in widths
    ]


def _keep_best(group: ChannelGroup, scores: Tensor, width: int) -> GroupPlan:
    # Stable, so that equal scores keep the earlier channel on every machine.
    ranking = torch.sort(scores, descending=True, stable=True).indices.tolist()
    kept, removed = ranking[: width // group.blocks], ranking[width // group.blocks :]

    def span(units: list[int]) -> tuple[float, float] | None:
        return (float(scores[units].min()), float(scores[units].max())) if units else None

    return GroupPlan(group.layer, group.width, group.channels(kept), span(kept), span(removed))
