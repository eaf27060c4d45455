"""What is cut: a plan is data, made once and applied by every rank."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from cpprune.distributed.collectives import fingerprint, structure
from cpprune.evaluation.complexity import (
    BYTES_PER_PARAMETER,
    count_macs,
    count_parameters,
    latency,
    layer_costs,
)
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
from cpprune.pruning.criteria import score
from cpprune.pruning.curves import Sensitivity, unit_costs
from cpprune.pruning.groups import ChannelGroup, dependency_graph
from cpprune.pruning.prunable import channel_groups, examine
from cpprune.pruning.ramp import on_the_way
from cpprune.pruning.surgery import apply_plan
from shards.errors import InputError
from shards.files.atomic import write_output
from shards.files.documents import DocumentError, read_json, to_json, typed

Plan = dict[str, Any]
# (network, input shape, device) → milliseconds for one input
Measure = Callable[[nn.Module, Sequence[int], torch.device], float]


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
    ramp: str = "widths",
    seed: int = 0,
    reduction: str | None = None,
    normaliser: str | None = None,
    min_width: int = 1,
    round_to: int = 1,
    saliency: Mapping[str, Tensor] | None = None,
    sensitivity: Sensitivity | None = None,
    measure: Measure = latency,
) -> Plan:
    """Decide which channels stay.

    Args:
        network: unwrapped module; it is not changed.
        input_shape: shape of one input, without the batch.
        criterion: see `CRITERIA`.
        scope: "local": the same part of every group; "global": the lowest scores of all;
            "sensitivity": of every group what costs less than one threshold.
        original_widths: output channels by layer at the start of the run.
        ratio: part of the original channels that is cut at the end of the schedule.
        budget: limits that hold at the end of the schedule, instead of a ratio.
        part: how much of the way to the end this plan goes.
        ramp: along what; see `cpprune.pruning.ramp`.
        seed: of the criterion random.
        reduction: of the criterion, and
        normaliser: likewise; see `cpprune.pruning.criteria.check_options`.
        min_width: no group gets narrower than this.
        round_to: widths are multiples of this.
        saliency: for taylor and hessian, what `cpprune.pruning.saliency` measured.
        sensitivity: for the scope of that name, what cutting each group costs.
        measure: how a latency is measured, on the network's device.

    Returns:
        `structure` and `weights` (fingerprints of the network that the plan is for), `criterion`,
        `scope`, and `groups`: for each `layer` its `width`, the channels to `keep` (sorted), and the
        lowest and highest score kept and cut.

    Raises:
        InputError: the criterion does not work on this network, or no widths meet the budget.
    """
    assert (scope == "sensitivity") == (sensitivity is not None)
    groups, scores = scored_groups(
        network, input_shape, criterion, saliency, seed, reduction, normaliser
    )
    layers = [group.layer for group in groups]
    originals = [original_widths[layer] for layer in layers]
    allowed = bounds(groups, min_width, round_to)
    costs = unit_costs(sensitivity, groups, originals, criterion) if sensitivity else scores

    def narrowing(cut: float) -> Widths:
        if scope == "local":
            return uniform(originals, cut)
        return lowest_first(groups, costs, max(1, math.floor(sum(originals) * (1 - cut) + 1e-9)))

    def plan_to(widths: Widths) -> Plan:
        plan = widths_plan(network, groups, scores, dict(zip(layers, widths.tolist(), strict=True)))
        return {"criterion": criterion, "scope": scope, **plan}

    def latency_at(widths: Widths) -> float:
        twin = copy.deepcopy(network)
        apply_plan(twin, input_shape, plan_to(widths))
        return measure(twin, input_shape, next(twin.parameters()).device)

    if budget is None and ramp == "widths":
        assert ratio is not None
        target = allowed.fit(narrowing(ratio * part))
    else:
        model = cost_model(network, input_shape, groups)
        if budget is None:
            assert ratio is not None
            end = allowed.fit(narrowing(ratio))
        else:
            limits = parse_budget(budget)
            timed = [limit for limit in limits if limit.quantity == "latency"]
            counted = [limit for limit in limits if limit.quantity != "latency"]
            end = allocate(model, counted, allowed, narrowing)
            for limit in timed:
                end = meet_latency(limit, end, allowed, narrowing, latency_at)
        target = on_the_way(model, np.array(originals), end, allowed, part, ramp)
    return plan_to(target)


def scored_groups(
    network: nn.Module,
    input_shape: Sequence[int],
    criterion: str,
    saliency: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    reduction: str | None = None,
    normaliser: str | None = None,
) -> tuple[list[ChannelGroup], list[Tensor]]:
    """Return the groups that may be cut, and the scores of each; see `make_plan`."""
    example = torch.zeros(1, *input_shape, device=next(network.parameters()).device)
    scored = network if saliency is None else _with_parameters(network, saliency)
    with dependency_graph(scored, example) as graph:
        groups = channel_groups(graph, scored)
        return groups, score(criterion, groups, seed, reduction, normaliser)


def widths_plan(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    widths: Mapping[str, int],
) -> Plan:
    """Return the plan that leaves groups so many of their best channels; others stay whole.

    Args:
        network: that the plan is for.
        groups: its groups, and
        scores: their scores, from `scored_groups`.
        widths: channels to keep, by layer.
    """
    return {
        "structure": structure(network),
        "weights": fingerprint(network),
        "groups": [
            _entry(group, values, widths[group.layer])
            for group, values in zip(groups, scores, strict=True)
            if group.layer in widths
        ],
    }


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan for `read_plan`.

    Raises:
        InputError: the file cannot be written.
    """
    write_output(path, plan_bytes(plan), "--prune.save_plan")


def plan_bytes(plan: Plan) -> bytes:
    """Return what a file holds from which `read_plan` reads a plan."""
    return (to_json(plan, indent=2) + "\n").encode()


class _Group(TypedDict):
    layer: str
    width: int
    keep: list[int]
    score_kept: NotRequired[tuple[float, float] | None]
    score_cut: NotRequired[tuple[float, float] | None]


class _PlanFile(TypedDict):
    """What a plan's file holds."""

    structure: Any
    weights: Any
    groups: list[_Group]


def read_plan(path: Path, network: nn.Module, input_shape: Sequence[int]) -> Plan:
    """Read a plan that `cpprune prune --dry-run --prune.save_plan` wrote for exactly this network.

    Raises:
        InputError: no such file, no plan, one for another network, or one that cannot be applied.
    """
    remedy = "make a pruning plan with `cpprune prune --dry-run --prune.save_plan`"
    plan = read_json(path, dict[str, Any], remedy=remedy)
    try:
        typed(plan, _PlanFile)
    except DocumentError as error:
        raise InputError(f"{path}: {error}; {remedy}") from None
    entries = {entry["layer"]: entry["keep"] for entry in plan["groups"]}
    made_for = plan["structure"], plan["weights"]
    if made_for != (structure(network), fingerprint(network)):
        raise InputError(
            f"{path}: was made for another network than this one (or was applied to it already): give "
            "the --init that it was made with, or make a new plan"
        )
    device = next(network.parameters()).device
    with dependency_graph(network, torch.zeros(1, *input_shape, device=device)) as graph:
        groups = {group.layer: group for group in channel_groups(graph, network)}
    if len(entries) != len(plan["groups"]) or entries.keys() - groups.keys():
        raise InputError(
            f"{path}: its groups must be some of {', '.join(groups)}, each once; make a new plan"
        )
    for entry in plan["groups"]:
        group = groups[entry["layer"]]
        length = group.width // group.blocks
        keep = entry["keep"] if isinstance(entry["keep"], list) else []
        units = sorted({channel % length for channel in keep if type(channel) is int})
        if entry["width"] != group.width or not units or keep != group.channels(units):
            raise InputError(
                f"{path}: {group.layer} has {group.width} channels in {group.blocks} block(s): keep "
                "must list those that stay, sorted, as many in each block; make a new plan"
            )
    return plan


def _with_parameters(network: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(values[name])
    return twin


def _entry(group: ChannelGroup, scores: Tensor, count: int) -> dict[str, Any]:
    # Stable, so that equal scores keep the earlier channel on every machine.
    ranking = torch.sort(scores, descending=True, stable=True).indices.tolist()
    kept, cut = ranking[: count // group.blocks], ranking[count // group.blocks :]

    def span(units: list[int]) -> list[float] | None:
        return [float(scores[units].min()), float(scores[units].max())] if units else None

    return {
        "layer": group.layer,
        "width": group.width,
        "keep": group.channels(kept),
        "score_kept": span(kept),
        "score_cut": span(cut),
    }


def describe(
    network: nn.Module, input_shape: Sequence[int], measure: Measure | None = None
) -> dict[str, Any]:
    """Return parameters, macs and bytes by dtype of a network, and with a measure its latency_ms."""
    parameters = count_parameters(network)
    device = next(network.parameters()).device
    return {
        "parameters": parameters,
        "macs": count_macs(network, input_shape),
        "bytes": {dtype: parameters * width for dtype, width in BYTES_PER_PARAMETER.items()},
        **({"latency_ms": measure(network, input_shape, device)} if measure else {}),
    }


def preview(
    network: nn.Module,
    input_shape: Sequence[int],
    plans: Sequence[Plan],
    measure: Measure | None = None,
) -> dict[str, Any]:
    """Return what plans applied one after the other would do, without changing the network.

    Returns:
        `before` and `after`, as `describe` gives them, and `layers`: for each its name, `before` and
        `after` (widths), its own parameters and macs before and after, and where it stands for a group
        the range of scores that the last plan keeps and cuts; and `left_alone`: by layer, why nothing
        is cut there. With a measure, `before` and `after` have `latency_ms`.
    """
    twin = copy.deepcopy(network)
    example = torch.zeros(1, *input_shape, device=next(twin.parameters()).device)
    with dependency_graph(twin, example) as graph:
        _, left_alone = examine(graph, twin)
    before, layers_before = describe(twin, input_shape, measure), layer_costs(twin, input_shape)
    for plan in plans:
        apply_plan(twin, input_shape, plan)
    layers_after = layer_costs(twin, input_shape)
    scores = {entry["layer"]: entry for entry in plans[-1]["groups"]} if plans else {}
    layers = []
    for name, (width, parameters, macs) in layers_before.items():
        width_after, parameters_after, macs_after = layers_after[name]
        layer = {
            "name": name,
            "before": width,
            "after": width_after,
            "parameters_before": parameters,
            "parameters_after": parameters_after,
            "macs_before": macs,
            "macs_after": macs_after,
            "score_kept": scores.get(name, {}).get("score_kept"),
            "score_cut": scores.get(name, {}).get("score_cut"),
        }
        layers.append(layer)
    return {
        "before": before,
        "after": describe(twin, input_shape, measure),
        "layers": layers,
        "left_alone": left_alone,
    }
