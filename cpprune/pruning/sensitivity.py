"""Sensitivity of each channel group: pruned alone, by rising fractions, and evaluated on a split.

Shapes: N clips of the slice, G groups.
"""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cpprune.evaluation import metrics
from cpprune.evaluation.predict import CHUNK, DIVERGED
from cpprune.models.artifact import Model
from cpprune.models.example import memory_format
from cpprune.models.fingerprint import fingerprint, structure
from cpprune.pruning.allocation import bounds, uniform
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.curves import FORMAT
from cpprune.pruning.importance import Saliency
from cpprune.pruning.plan import Plan
from cpprune.pruning.planner import keep_best, scored_groups
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError
from shards.files.atomic import replace_file
from shards.files.documents import to_json
from shards.files.ownership import Kind, read_mark
from shards.order import permutation
from shards.progress import progress
from shards.split import Split

FIGURES = ("macro_accuracy", "log_loss")

SENSITIVITY = Kind(
    name="a measurement of sensitivity",
    parts=("sensitivity.json", "sensitivity.csv", "sensitivity.png"),
    made=lambda folder: (
        {"format", "baseline", "ratios", "layers"} <= read_mark(folder / "sensitivity.json").keys()
    ),
)


@torch.no_grad()
def measure_sensitivity(
    model: Model,
    split: Split,
    *,
    criterion: str,
    ratios: Sequence[float],
    clips: int,
    saliency: Saliency | None = None,
) -> dict[str, Any]:
    """Prune each group of the model's network alone, in a copy, and evaluate the copy.

    Args:
        model: is not changed; its device is used.
        split: whose clips are looked at: a slice that depends on their number alone.
        criterion: by which channels are chosen; see `CRITERIA`.
        ratios: fractions of the channels to remove, rising.
        clips: N at most.
        saliency: for criteria that need gradients, from `measure_saliency`.

    Returns:
        What sensitivity.json holds: the network's `structure` and `weights` (fingerprints), what it was
        measured by and on, its own figures as `baseline`, and for each of the `layers` that stand for
        a group its `width`, and the `widths`, `macro_accuracy` and `log_loss` at each of the `ratios`.

    Raises:
        UserError: the criterion does not work on this network, or its output is not finite.
    """
    network, input_shape = model.network, model.input_shape
    positions = np.sort(permutation(len(split), 0)[:clips])
    x_NCFT, label_N = _inputs(model, split, positions), split.labels[positions]
    scored = scored_groups(network, input_shape, PruneConfig(criterion=criterion), saliency)
    groups = [entry.group for entry in scored]
    allowed = bounds(groups, min_width=1, round_to=1)
    widths_at = [allowed.fit(uniform(allowed.widest.tolist(), ratio)) for ratio in ratios]

    whole = Plan(structure=structure(network), weights=fingerprint(network), groups=[])

    def figures(widths: Mapping[str, int]) -> dict[str, float]:
        twin = copy.deepcopy(network).eval()
        plan = replace(whole, groups=keep_best(scored, widths, criterion))
        apply_plan(twin, input_shape, plan)
        return _figures(twin, x_NCFT, label_N)

    baseline = figures({})
    layers: list[dict[str, object]] = []
    with progress("cuts", len(groups) * len(ratios)) as advance:
        for number, group in enumerate(groups):
            widths = [int(widths_G[number]) for widths_G in widths_at]
            found = {group.width: baseline}
            for width in widths:
                if width not in found:  # a narrow layer has fewer widths than there are ratios
                    found[width] = figures({group.layer: width})
                advance(1)
            layers.append(
                {
                    "layer": group.layer,
                    "width": group.width,
                    "ratios": list(ratios),
                    "widths": widths,
                    **{key: [found[width][key] for width in widths] for key in FIGURES},
                }
            )
    order = [name for name, _ in network.named_modules()]
    layers.sort(key=lambda row: order.index(row["layer"]))
    return {
        "format": FORMAT,
        "structure": whole.structure,
        "weights": whole.weights,
        "criterion": criterion,
        "dataset": split.dataset.fingerprint,
        "split": split.name,
        "clips": len(positions),
        "ratios": list(ratios),
        "baseline": baseline,
        "least_sensitive": min(layers, key=_rank)["layer"],
        "layers": layers,
    }


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    # A layer of one channel cannot be cut, which says nothing of it.
    return row["widths"][-1] == row["width"], mean(row["log_loss"])


def _inputs(model: Model, split: Split, positions: NDArray[np.int64]) -> Tensor:
    device = next(model.parameters()).device
    parts = [
        model.features(torch.from_numpy(split.fetch(positions[begin : begin + CHUNK])).to(device))
        for begin in range(0, len(positions), CHUNK)
    ]
    x = torch.cat(parts)
    return x.to(memory_format=memory_format(model.network, x))


def _figures(network: nn.Module, x_NCFT: Tensor, label_N: NDArray[np.int64]) -> dict[str, float]:
    logits = torch.cat([network(part).float() for part in torch.split(x_NCFT, CHUNK)])
    found = metrics.summary(metrics.log_softmax(logits.cpu().numpy()), label_N)
    if found["log_loss"] is None:
        raise UserError(f"the model's output is not finite; {DIVERGED}")
    return {key: found[key] for key in FIGURES}


def write_sensitivity(found: Mapping[str, Any], folder: Path) -> None:
    """Write sensitivity.json, and as a table, one line a cut, sensitivity.csv."""
    text = to_json(found, indent=2) + "\n"
    replace_file(folder / "sensitivity.json", folder, text.encode())
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["layer", "width_before", "ratio", "width", *FIGURES])
    for row in found["layers"]:
        columns = (row["ratios"], row["widths"], *(row[key] for key in FIGURES))
        for values in zip(*columns, strict=True):
            writer.writerow([row["layer"], row["width"], *values])
    replace_file(folder / "sensitivity.csv", folder, table.getvalue().encode())
