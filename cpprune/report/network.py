"""The network of a run: its costs by layer, and the widths after each pruning step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cpprune.evaluation.complexity import complexity, layer_costs
from cpprune.evaluation.dcase import Complexity
from cpprune.evaluation.operations import differ
from cpprune.models.registry import build_model
from cpprune.pruning.budget import parse_budget
from cpprune.report import charts
from cpprune.report.page import Cell, Facts, Figure, Section, Table, Text, count
from cpprune.report.run_folder import Run, times
from cpprune.runs.records import PruneRecord
from shards.errors import UserError

Stages = list[tuple[str, dict[str, int]]]

GONE = (0, 0, 0)  # width, parameters and MACs of a layer whose block was removed


@dataclass(frozen=True)
class Costs:
    """Costs of a model: in total, from `complexity`, and by layer, from `layer_costs`."""

    total: Complexity
    layers: dict[str, tuple[int, int, int]]


def model_costs(run: Run) -> Costs | None:
    """Return the costs of a run's model; None without a model."""
    if run.model is None:
        return None
    network, shape = run.model.network, run.model.input_shape
    return Costs(complexity(network, shape), layer_costs(network, shape))


def network_section(run: Run, costs: Costs | None) -> Section:
    """Return the widths before and after each pruning step; parameters and MACs of every layer."""
    title = "Network"
    if run.model is None or costs is None:
        return Section(title, [Text("There is no model yet.")])
    stages = width_stages(run, costs)
    cuts = [
        f"{cut.parameters_before:,} → {cut.parameters:,} parameters at the start of epoch "
        f"{cut.epoch + 1} ({_how(cut)})"
        for cut in run.cuts
    ]
    text = (
        f"Pruned {times(len(cuts))}: {'; '.join(cuts)}."
        if cuts
        else "It was not pruned in this run."
    )
    if record := run.quantised:
        kept = ", ".join(record.keep_float) or "no layer"
        text += (
            f" Quantised (int8) at the start of epoch {record.epoch + 1}: {record.layers} layers; in "
            f"float32: {kept}."
        )
    caption = "Channels of each layer"
    if len(stages) > 1:
        caption += "; grey: pruned" + "; lines: after each step but the last" * (len(stages) > 2)
    shape = " × ".join(map(str, run.model.input_shape))
    return Section(
        title,
        [
            Text(f"{run.model.family} for inputs of {shape}. {text}"),
            Figure(charts.widths(stages), f"{caption}."),
            layer_table(run, costs, stages),
        ],
    )


def _how(cut: PruneRecord) -> str:
    by_criterion = [f"criterion {cut.criterion}"] if cut.criterion else []
    return "; ".join([*by_criterion, *(f"without {name}" for name in cut.removed_blocks)])


def width_stages(run: Run, costs: Costs) -> Stages:
    """Return the widths before pruning and after each step; without pruning, those of the model."""
    now = {name: width for name, (width, _, _) in costs.layers.items()}
    pruning = run.about.pruning if run.about else None
    original = pruning.original_widths if pruning else {}
    if not run.cuts or not original:
        return [("channels", now)]
    stages = [("before", original)]
    stages += [(f"from epoch {cut.epoch + 1} on", cut.widths) for cut in run.cuts]
    layers = dict.fromkeys([*original, *now])  # with those of blocks that were removed
    return [(name, {layer: widths.get(layer, 0) for layer in layers}) for name, widths in stages]


def layer_table(run: Run, costs: Costs, stages: Stages) -> Table:
    """Return width, parameters and MACs of every layer; before and after pruning, if both are known."""
    after = costs.layers
    before = _costs_before(run, stages)
    if before is None:
        head = ["layer", "channels", "parameters", "MACs"]
        rows = [[Cell(name), *map(count, own)] for name, own in after.items()]
        return Table("Layers, excluding normalisation and classifier", head, rows)
    head = ["layer"]
    for what in ("channels", "parameters", "MACs"):
        head += [f"{what} before", "after"]
    rows = [
        [
            Cell(name),
            *(count(n) for pair in zip(own, after.get(name, GONE), strict=True) for n in pair),
        ]
        for name, own in before.items()
    ]
    return Table(
        "Layers before and after pruning, excluding normalisation and classifier",
        head,
        rows,
    )


def _costs_before(run: Run, stages: Stages) -> dict[str, tuple[int, int, int]] | None:
    """Return the layers' costs before pruning; None unless that was the network as configured."""
    assert run.model is not None
    if len(stages) == 1:
        return None
    model = run.model
    fresh = build_model(model.family, num_classes=len(model.classes), **model.config)
    costs = layer_costs(fresh, model.input_shape)
    same = {name: width for name, (width, _, _) in costs.items()} == stages[0][1]
    return costs if same else None


def limits_section(run: Run, costs: Costs | None) -> Section:
    """Return whether the model meets DCASE's limits and the run's own budget."""
    title = "Size and limits"
    if costs is None:
        return Section(title, [Text("There is no model yet.")])
    cost = costs.total
    limits = cost["limits"]
    rows = [_limit("DCASE: MACs", cost["macs"], limits["macs"]["limit"])]
    rows += [
        _limit(f"DCASE: bytes as {dtype}", size, limits["bytes"]["limit"])
        for dtype, size in cost["bytes"].items()
    ]
    rows += _budget(run, costs)
    field = cost["receptive_field"]
    facts = [
        ("parameters", f"{cost['parameters']:,}"),
        ("MACs of one clip", f"{cost['macs']:,}"),
        *operations_fact(cost),
        ("receptive field", f"{field['mel_bins']} rows × {field['frames']} columns"),
    ]
    head = ["limit", "met", "value", "at most"]
    note = (
        "DCASE's limits are those of task 1 in 2024 and 2025; one data type must meet that of bytes"
    )
    return Section(title, [Facts(facts), Table(note, head, rows)])


def operations_fact(cost: Complexity) -> list[tuple[str, str]]:
    """Return the operations as a fact, if MACs leave out some."""
    if not differ(cost["macs"], cost["operations"]):
        return []
    return [("operations of one clip", f"{cost['operations']:,}")]


def _limit(what: str, value: float, bound: float) -> Sequence[Cell]:
    verdict = "yes" if value <= bound else "no"
    return [Cell(what), Cell(verdict), count(value), count(bound)]


def _budget(run: Run, costs: Costs) -> list[Sequence[Cell]]:
    text = run.known.get("prune.budget")
    if not text:
        return []
    try:
        limits = parse_budget(text)
    except ValueError as error:
        raise UserError(str(error)) from None
    values = {"params": costs.total["parameters"]}
    values |= {key: costs.total[key] for key in ("macs", "operations")}
    return [
        _limit(f"prune.budget: {limit.text}", values[limit.quantity], limit.bound)
        for limit in limits
        if limit.quantity in values  # latency depends on the machine
    ]
