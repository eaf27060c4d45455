"""Which channels a pruning step keeps: widths are allocated to groups, the best-scored channels stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cpprune.evaluation.complexity import latency
from cpprune.models.example import example_input
from cpprune.models.fingerprint import fingerprint, structure
from cpprune.pruning.allocation import (
    allocate,
    bounds,
    lowest_first,
    meet_measured,
    uniform,
    widened,
)
from cpprune.pruning.budget import Limit, parse_budget
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.costs import Widths, cost_model
from cpprune.pruning.curves import read_sensitivity, unit_costs
from cpprune.pruning.groups import ChannelGroup, Graph, dependency_graph
from cpprune.pruning.importance import criteria_of, score
from cpprune.pruning.measured import Gauge, Measure
from cpprune.pruning.patterns import own_ratios
from cpprune.pruning.plan import GroupPlan, Plan, attributes_after
from cpprune.pruning.prunable import chosen_groups, prunable_groups
from cpprune.pruning.ramp import scheduled_widths
from cpprune.pruning.surgery import apply_plan


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
        config: the ratio, ratios or budget at the end of the schedule, criterion, scope, ramp, bounds.
        original_widths: output channels by layer at the start of the run.
        fraction: of the schedule that is done after this step.
        seed: of the criterion random.
        saliency: for criteria that need gradients, from `measure_saliency`.
        measure: how a latency is measured, on the network's device.

    Raises:
        UserError: the criterion does not work on this network, no widths meet the budget, or the
            file of `prune.sensitivity` cannot be used.
    """
    scored = scored_groups(network, input_shape, config, saliency, seed)
    return plan_scored(
        network,
        input_shape,
        config,
        scored,
        original_widths=original_widths,
        fraction=fraction,
        measure=measure,
    )


def plan_scored(
    network: nn.Module,
    input_shape: Sequence[int],
    config: PruneConfig,
    scored: Sequence[ScoredGroup],
    *,
    original_widths: Mapping[str, int],
    fraction: float = 1.0,
    measure: Measure = latency,
) -> Plan:
    """Decide which channels of scored groups a pruning step keeps; see `make_plan`."""
    groups = [entry.group for entry in scored]
    layers = [group.layer for group in groups]
    originals = [original_widths[layer] for layer in layers]
    least = [width * (1 - config.max_ratio) for width in originals]
    allowed = bounds(groups, config.min_width, config.round_to, least)
    has_own = np.array([entry.ratio is not None for entry in scored])
    own = np.array([entry.ratio or 0.0 for entry in scored])
    at_end = allowed.held(has_own, allowed.fit(uniform(originals, own)))
    costs = [entry.scores for entry in scored]
    if config.sensitivity is not None:
        sensitivity = read_sensitivity(Path(config.sensitivity))
        costs = unit_costs(sensitivity, groups, originals, config.criterion)
    rankings = _rankings(scored, config.scope)

    def narrowed(removed: float, done: float = 1.0) -> Widths:
        """Return the widths when a fraction of the channels is removed, and `done` of the own ratios."""
        widths = uniform(originals, np.where(has_own, own * done, removed))
        for members in rankings:
            total = math.floor(sum(originals[m] for m in members) * (1 - removed) + 1e-9)
            ranked = [groups[m] for m in members], [costs[m] for m in members]
            widths[members] = lowest_first(*ranked, max(1, total), allowed.narrowest[members])
        return widths

    def plan_to(widths: Widths) -> Plan:
        return Plan(
            criterion=config.criterion,
            scope=config.scope,
            structure=structure(network),
            weights=fingerprint(network),
            groups=keep_best(
                scored, dict(zip(layers, widths.tolist(), strict=True)), config.criterion
            ),
        )

    gauge = Gauge(network, input_shape, measure)

    def amount_at(limit: Limit, widths: Widths) -> float:
        twin = copy.deepcopy(network)
        apply_plan(twin, input_shape, plan_to(widths))
        return gauge.amount(limit, twin)

    if config.budget is None:
        ratio = config.ratio or 0.0  # only layers with one of their own are cut
        if config.ramp == "widths":
            return plan_to(allowed.fit(narrowed(ratio * fraction, fraction)))
        model = cost_model(network, input_shape, groups)
        end = allowed.fit(narrowed(ratio))
    else:
        limits = parse_budget(config.budget)
        operations = any(limit.quantity == "operations" for limit in limits)
        exported = {limit.exported for limit in limits if limit.exported}
        model = cost_model(network, input_shape, groups, operations, sorted(exported))
        foreseen = [limit for limit in limits if not limit.measured]
        end = allocate(model, foreseen, at_end, narrowed)
        for limit in limits:
            if limit.measured:
                start, measured = end, partial(amount_at, limit)
                end = meet_measured(limit, start, at_end, narrowed, measured)
                if limit.about.at_peak:
                    end = widened(limit, start, end, measured)
    original = np.array(originals)
    return plan_to(scheduled_widths(model, original, end, allowed, fraction, config.ramp))


@dataclass(frozen=True)
class ScoredGroup:
    """A group that may be pruned.

    Attributes:
        group: the group.
        scores: of its pruning units, [units].
        criterion: that gave them.
        ratio: of its channels to remove, where the settings name the group; see `PruneConfig.ratios`.
    """

    group: ChannelGroup
    scores: Tensor
    criterion: str
    ratio: float | None


def scored_groups(
    network: nn.Module,
    input_shape: Sequence[int],
    config: PruneConfig,
    saliency: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> list[ScoredGroup]:
    """Return the groups that may be pruned; see `make_plan`."""
    network = network if saliency is None else _with_parameters(network, saliency)
    with dependency_graph(network, example_input(network, input_shape)) as graph:
        return score_groups(graph, network, prunable_groups(graph, network), config, seed)


def score_groups(
    graph: Graph,
    network: nn.Module,
    prunable: Sequence[ChannelGroup],
    config: PruneConfig,
    seed: int = 0,
) -> list[ScoredGroup]:
    """Return those groups of a traced network that may be pruned, scored by its parameters as they are.

    Args:
        graph: the network's, from `dependency_graph`.
        network: unwrapped module; where the criterion needs data, its parameters hold their saliency.
        prunable: from `prunable_groups`.
        config: see `make_plan`.
        seed: of the criterion random.
    """
    main, fallback = config.criterion, config.fallback_criterion
    options = {main: (config.reduction, config.normaliser)}
    ratios = own_ratios(graph, network, prunable, config.ratios)
    groups = chosen_groups(graph, network, config.ignore, prunable)
    criteria = criteria_of(main, fallback, groups, seed)
    return [
        ScoredGroup(
            group,
            score(criterion, [group], seed, *options.get(criterion, (None, None)))[0],
            criterion,
            ratios.get(group.layer),
        )
        for group, criterion in zip(groups, criteria, strict=True)
    ]


def _rankings(scored: Sequence[ScoredGroup], scope: str) -> list[list[int]]:
    """Return the groups, by number, whose channels compete: those of equal keys; none for local."""
    found: dict[object, list[int]] = {}
    for number, entry in enumerate(scored):
        if scope != "local" and entry.ratio is None:
            # Scores of two criteria are never compared.
            key = (entry.group.structure, entry.criterion) if scope == "isomorphic" else scope
            found.setdefault(key, []).append(number)
    return list(found.values())


def _with_parameters(network: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(values[name])
    return twin


def keep_best(
    scored: Sequence[ScoredGroup], widths: Mapping[str, int], criterion: str
) -> list[GroupPlan]:
    """Return the plans that keep, of the groups in `widths`, that many of the best channels.

    Args:
        scored: from `scored_groups`.
        widths: channels to keep, by layer.
        criterion: of the plan.
    """
    return [
        _keep_best(entry, widths[entry.group.layer], criterion)
        for entry in scored
        if entry.group.layer in widths
    ]


def _keep_best(entry: ScoredGroup, width: int, criterion: str) -> GroupPlan:
    group, scores = entry.group, entry.scores
    # Stable, so that equal scores keep the earlier channel on every machine.
    ranking = torch.sort(scores, descending=True, stable=True).indices.tolist()
    kept, removed = ranking[: width // group.blocks], ranking[width // group.blocks :]

    def span(units: list[int]) -> tuple[float, float] | None:
        return (float(scores[units].min()), float(scores[units].max())) if units else None

    keep = group.channels(kept)
    return GroupPlan(
        group.layer,
        group.width,
        keep,
        span(kept),
        span(removed),
        entry.criterion if entry.criterion != criterion else None,
        attributes_after(group, keep),
    )
