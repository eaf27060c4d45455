"""Pruning networks of others: what is cut, whether they come back from a folder, and train.

    python benchmarks/architectures.py [NAME …]
    python benchmarks/architectures.py --table [NAME …]

Each network of timm is built with fresh weights and 10 classes, cut by 0.3 of every group (local
magnitude), saved as a model folder, loaded, compared, and trained for a step. With --table, each small
network, of timm and tests/small_networks.py, is cut by 0.5 and scored by every criterion; the Markdown
table of docs/networks.md says what became of it.
"""

from __future__ import annotations

import contextlib
import platform
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.audio.frontend import ScaleImage
from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.models import artifact
from cpprune.models.example import example_input
from cpprune.models.registry import build_model
from cpprune.models.resize import layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.criteria import CRITERIA
from cpprune.pruning.groups import dependency_graph
from cpprune.pruning.planner import make_plan, plan_scored, score_groups
from cpprune.pruning.preview import preview
from cpprune.pruning.prunable import prunable_groups, randomise
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

CLASSES = [str(number) for number in range(10)]

# name → (size of the image, factory, its arguments)
Entry = tuple[int, str, dict[str, Any]]


def _timm(model_name: str, size: int = 64, **arguments: Any) -> Entry:
    return size, "timm:create_model", {"model_name": model_name, "pretrained": False, **arguments}


SMALL: dict[str, Entry] = {
    "resnet of 4 blocks": _timm("resnet10t", 32, channels=[8, 16, 24, 32]),
    "densenet of 2 + 2 layers": _timm("densenet121", 32, block_config=[2, 2], growth_rate=8),
    "convnext of 4 blocks": _timm("convnext_atto", depths=[1, 1, 1, 1], dims=[16, 24, 32, 48]),
    "vit of 2 blocks": _timm(
        "vit_tiny_patch16_224", 32, img_size=32, depth=2, embed_dim=48, num_heads=3
    ),
    "lcnet_035": _timm("lcnet_035", 32),
}

WHOLE: dict[str, Entry] = {
    "vgg of 6 layers": (32, "timm.models.vgg:VGG", {"cfg": [8, "M", 16, 16, "M", 32, "M"]}),
    "resnet10t": _timm("resnet10t"),
    "resnet14t": _timm("resnet14t"),
    "resnext26ts": _timm("resnext26ts"),
    "repvgg_a0": _timm("repvgg_a0"),
    "mobileone_s0": _timm("mobileone_s0"),
    "mobilenetv2_050": _timm("mobilenetv2_050"),
    "mobilenetv3_small_050": _timm("mobilenetv3_small_050"),
    "tinynet_e": _timm("tinynet_e"),
    "ghostnet_050": _timm("ghostnet_050"),
    "regnetx_002": _timm("regnetx_002"),
    "regnety_002": _timm("regnety_002"),
    "dla46_c": _timm("dla46_c"),
    "densenet121": _timm("densenet121", 32),
    "starnet_s1": _timm("starnet_s1"),
    "convnext_atto": _timm("convnext_atto"),
    "convnextv2_atto": _timm("convnextv2_atto"),
    "inception_next_atto": _timm("inception_next_atto"),
    "edgenext_xx_small": _timm("edgenext_xx_small"),
    "poolformerv2_s12": _timm("poolformerv2_s12"),
    "mobilevit_xxs": _timm("mobilevit_xxs"),
    "efficientvit_b0": _timm("efficientvit_b0"),
    "xcit_nano_12_p16_224": _timm("xcit_nano_12_p16_224", img_size=64),
    "vit_tiny_patch16_224": _timm("vit_tiny_patch16_224", img_size=64),
    "mixer_s32_224": _timm("mixer_s32_224", img_size=64),
    "resmlp_12_224": _timm("resmlp_12_224", img_size=64),
}

# They keep what they compute, so that they cannot be copied once they were run.
REFUSED: dict[str, Entry] = {
    "levit_128s": _timm("levit_128s", img_size=64),
    "efficientformerv2_s0": _timm("efficientformerv2_s0", img_size=64),
}


@dataclass(frozen=True)
class Row:
    """What became of a network.

    Attributes:
        parameters: before and after.
        macs: before and after.
        cut: groups that lost channels.
        not_prunable: by layer, why its group is not pruned.
        difference: largest between the outputs of the pruned network and of the one loaded.
        trains: whether a step had a finite loss, and just the parameters that had a gradient before
            the cut have one after it.
    """

    parameters: tuple[int, int]
    macs: tuple[int, int]
    cut: int
    not_prunable: dict[str, str]
    difference: float
    trains: bool


def prune_and_load(entry: Entry, folder: Path) -> Row:
    """Prune a network by 0.3, write it to the folder, load it, train it.

    Raises:
        UserError: it cannot be pruned.
    """
    size, family, arguments = entry
    shape = (3, size, size)
    torch.manual_seed(0)
    network = build_model(family, num_classes=len(CLASSES), **arguments)
    before = count_parameters(network), count_macs(network, shape)
    trained_before = _step(network, shape)
    network = build_model(family, num_classes=len(CLASSES), **arguments)
    plan = make_plan(network, shape, PruneConfig(ratio=0.3), original_widths=layer_widths(network))
    not_prunable = preview(network, shape, [plan])["left_alone"]
    apply_plan(network, shape, plan)
    model = artifact.Model(
        network,
        ScaleImage(),
        family=family,
        config=arguments,
        classes=CLASSES,
        clip_shape=shape,
    ).eval()
    artifact.save(model, folder)
    again = artifact.load(folder, trust=["timm"])
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = float((model(images) - again(images)).abs().max())
    after = count_parameters(again.network), count_macs(again.network, shape)
    return Row(
        parameters=(before[0], after[0]),
        macs=(before[1], after[1]),
        cut=sum(bool(group.removed) for group in plan.groups),
        not_prunable=not_prunable,
        difference=difference,
        trains=trained_before is not None and _step(again.network, shape) == trained_before,
    )


def _step(network: nn.Module, shape: tuple[int, ...]) -> set[str] | None:
    """Take a step of Adam; return which parameters had a gradient, or None if the loss is lost."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(4)
    loss: Tensor = functional.cross_entropy(network(images), labels)
    loss.backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None}
    optimizer.step()
    after: Tensor = functional.cross_entropy(network(images), labels)
    return moved if loss.isfinite() and after.isfinite() else None


# --- the table of docs/networks.md ---------------------------------------------------------------------

OUTPUTS = "makes the outputs of the network"


def small_networks() -> dict[str, tuple[tuple[int, ...], str, dict[str, Any]]]:
    """Return the networks of the table: shape of an input, factory, its arguments."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import small_networks

    found: dict[str, tuple[tuple[int, ...], str, dict[str, Any]]] = {
        name.split(":")[1]: ((1, 28, 28), name, {}) for name in small_networks.ALL
    }
    for name, (size, family, arguments) in SMALL.items():
        found[f"timm: {name}"] = (3, size, size), family, arguments
    return found


def table_row(name: str) -> str:
    """Return the row of a network: its parameters before and after, what keeps its width, and why."""
    shape, family, arguments = small_networks()[name]
    torch.manual_seed(0)
    network = build_model(family, num_classes=len(CLASSES), **arguments)
    with contextlib.suppress(TypeError):  # it takes something else
        network(torch.zeros(2, *shape))  # lazy layers
    randomise(network, torch.Generator().manual_seed(0))
    refused: dict[str, list[str]] = {}
    plan = None
    try:
        with dependency_graph(network, example_input(network, shape)) as graph:
            groups = prunable_groups(graph, network)
            for criterion in CRITERIA:
                config = PruneConfig(ratio=0.5, criterion=criterion)
                try:
                    scored = score_groups(graph, network, groups, config)
                except UserError as error:
                    refused.setdefault(_reason(str(error)), []).append(criterion)
                    continue
                widths = layer_widths(network)
                own = plan_scored(network, shape, config, scored, original_widths=widths)
                plan = own if criterion == "magnitude" else plan
    except UserError as error:
        return f"| {name} | refused | {_escaped(str(error))} | all |"
    assert plan is not None
    shown = preview(network, shape, [plan])
    before, after = (shown[when]["parameters"] for when in ("before", "after"))
    left = {layer: why for layer, why in shown["left_alone"].items() if why != OUTPUTS}
    reasons: dict[str, list[str]] = {}
    for layer, why in left.items():
        reasons.setdefault(why, []).append(layer)
    kept = "; ".join(f"{_named(layers)}: {_escaped(why)}" for why, layers in reasons.items())
    by = "; ".join(f"{', '.join(criteria)}: {why}" for why, criteria in refused.items())
    return f"| {name} | {before:,} → {after:,} | {kept} | {by} |"


def _named(layers: list[str]) -> str:
    return ", ".join(f"`{layer}`" for layer in layers)


def _reason(message: str) -> str:
    """Return what a criterion's refusal says of the network, without the remedy."""
    return re.split(r"[,;:] ?", message.split(": ", 1)[1])[0]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def print_table(names: list[str]) -> None:
    """Print the table of docs/networks.md."""
    print(
        "| network | parameters | keep their width | criteria that refuse it |\n|---|---|---|---|"
    )
    for name in names or small_networks():
        print(table_row(name), flush=True)


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    if names[:1] == ["--table"]:
        print_table(names[1:])
        return 0
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}")
    print(
        f"{'network':<25} {'parameters':>25} {'MACs':>29} {'cut':>4} {'left':>4} {'difference':>10} "
        "step"
    )
    failures = 0
    for name, entry in {**SMALL, **WHOLE, **REFUSED}.items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = prune_and_load(entry, Path(folder) / "model")
            except UserError as error:
                failures += name not in REFUSED
                print(f"{name:<25} {error}", flush=True)
                continue
        failures += row.difference > 0 or not row.trains or name in REFUSED
        arrows = [f"{a:,} → {b:,}" for a, b in (row.parameters, row.macs)]
        print(
            f"{name:<25} {arrows[0]:>25} {arrows[1]:>29} {row.cut:>4} {len(row.not_prunable):>4} "
            f"{row.difference:>10g} {'ok' if row.trains else 'FAILED'}",
            flush=True,
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
