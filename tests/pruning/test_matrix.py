"""Every small network by every criterion and scope: cut, saved, loaded and trained, or refused at once.

Each network is traced once, then scored by every criterion, each with a scope in turn.
`CPPRUNE_MATRIX=full` tries every criterion with every scope.
"""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import slow
from networks import plan_for, randomised
from small_networks import CUT, REFUSED
from torch import Tensor, nn
from torch.nn import functional

import cpprune
from cpprune.audio.frontend import ScaleImage
from cpprune.models import artifact
from cpprune.models.resize import layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.criteria import CRITERIA
from cpprune.pruning.groups import ChannelGroup, dependency_graph
from cpprune.pruning.plan import Plan
from cpprune.pruning.planner import plan_scored, score_groups
from cpprune.pruning.preview import preview
from cpprune.pruning.prunable import prunable_groups
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

SHAPE = (1, 28, 28)
SCOPES = ("local", "global", "isomorphic", "sensitivity")
FULL = os.environ.get("CPPRUNE_MATRIX") == "full"
FAST = ("blocks:Res2", "blocks:GLU", "attentions:VisionTransformer")


def built(name: str) -> nn.Module:
    network = cpprune.build_model(name)
    if name not in REFUSED:
        network(torch.zeros(2, *SHAPE))  # lazy layers
    return randomised(network)


def curves(folder: Path, criterion: str, groups: list[ChannelGroup]) -> str:
    """Write made-up curves of sensitivity: layers later in the list are more sensitive."""
    layers = [
        {
            "layer": group.layer,
            "width": group.width,
            "widths": [group.width // 2, group.width // 4],
            "log_loss": [1 + number / 10, 1 + number],
        }
        for number, group in enumerate(groups)
    ]
    file = folder / f"{criterion}.json"
    whole = {"format": 1, "criterion": criterion, "baseline": {"log_loss": 1.0}, "layers": layers}
    file.write_text(json.dumps(whole))
    return str(file)


def plans(name: str, network: nn.Module, folder: Path) -> Iterator[tuple[str, Plan]]:
    """Yield the plan of every criterion and scope; a criterion that is refused names a layer."""
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        groups = prunable_groups(graph, network)
        for number, criterion in enumerate(CRITERIA, CUT.index(name)):
            for scope in SCOPES if FULL else SCOPES[number % len(SCOPES) :][:1]:
                file = curves(folder, criterion, groups) if scope == "sensitivity" else None
                config = PruneConfig(ratio=0.5, criterion=criterion, scope=scope, sensitivity=file)
                try:
                    # With data, the parameters hold their saliency: these are as good as any.
                    scored = score_groups(graph, network, groups, config)
                except UserError as error:
                    assert criterion == "bn_scale"
                    assert "finds nothing to score in" in str(error)  # noqa: PT017
                    assert "\n" not in str(error)  # noqa: PT017
                    break
                widths = layer_widths(network)
                yield (
                    f"{criterion} {scope}",
                    plan_scored(network, SHAPE, config, scored, original_widths=widths),
                )


def saved_and_loaded(name: str, network: nn.Module, folder: Path) -> nn.Module:
    classes = [str(number) for number in range(10)]
    model = artifact.Model(
        network, ScaleImage(), family=name, config={}, classes=classes, clip_shape=SHAPE
    ).eval()
    artifact.save(model, folder)
    return artifact.load(folder, trust=[name.split(":")[0]]).network


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network.eval()(x)
    return logits


def trains(network: nn.Module, x: Tensor) -> bool:
    network.train()
    loss = functional.cross_entropy(network(x), torch.arange(len(x)))
    loss.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    torch.optim.SGD(network.parameters(), lr=1e-4).step()
    finite = all(gradient.isfinite().all() for gradient in gradients)
    after = functional.cross_entropy(network(x), torch.arange(len(x)))
    return bool(gradients) and finite and bool(after.isfinite())


@pytest.mark.parametrize("name", [name if name in FAST else slow(name) for name in CUT])
def test_a_network_is_cut_by_every_criterion_and_scope(name: str, tmp_path: Path) -> None:
    network = built(name)
    before = layer_widths(network)
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    seen: set[tuple[int, ...]] = set()
    tried = 0
    for how, plan in plans(name, network, tmp_path):
        tried += 1
        twin = copy.deepcopy(network)
        apply_plan(twin, SHAPE, plan)
        widths = layer_widths(twin)
        assert {group.layer: widths[group.layer] for group in plan.groups} == {
            group.layer: len(group.keep) for group in plan.groups
        }, how
        assert sum(widths.values()) < sum(before.values()), how
        if tuple(widths.values()) in seen:
            continue
        seen.add(tuple(widths.values()))
        loaded = saved_and_loaded(name, twin, tmp_path / f"{len(seen)}")
        assert torch.equal(logits_of(loaded, x), logits_of(twin, x)), how
        assert trains(loaded, x), how
    scopes = len(SCOPES) if FULL else 1
    assert tried in (len(CRITERIA) * scopes, (len(CRITERIA) - 1) * scopes)
    shown = preview(network, SHAPE, [plan_for(network, SHAPE, ratio=0.5)])
    unchanged = {layer["name"] for layer in shown["layers"] if layer["before"] == layer["after"]}
    assert unchanged == shown["left_alone"].keys()
    assert all(shown["left_alone"].values())


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_what_cannot_be_cut_is_refused_in_one_line(name: str, scope: str) -> None:
    network = built(name)
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        plan_for(network, SHAPE, ratio=0.5, scope=scope)
    assert "\n" not in str(caught.value)


def test_there_are_many() -> None:
    assert len(CUT) + len(REFUSED) >= 80
    assert np.unique([*CUT, *REFUSED]).size == len(CUT) + len(REFUSED)
