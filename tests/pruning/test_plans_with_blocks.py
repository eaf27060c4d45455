"""Plans that remove whole blocks: made, applied, written and read back."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import SHAPE, parameters, plan_for
from torch import nn

from cpprune.models.changes import remove_blocks, removed_blocks
from cpprune.models.fingerprint import fingerprint, structure
from cpprune.models.resize import layer_widths
from cpprune.pruning.blocks import RemovedBlock
from cpprune.pruning.plan import Plan, read_plan, with_blocks, without_blocks, write_plan
from cpprune.pruning.preview import preview
from cpprune.pruning.surgery import apply_plan, carry, kept_entries
from shards.errors import UserError

Make = Callable[..., nn.Module]

GONE = [RemovedBlock("stage1.block2", 0.25), RemovedBlock("stage3.block2")]


def plan_with_blocks(network: nn.Module, **changes: Any) -> Plan:
    """Plan what the recipe cuts of a network without two blocks."""
    original = layer_widths(network)
    left = without_blocks(network, GONE)
    return with_blocks(network, GONE, plan_for(left, original_widths=original, **changes))


def test_a_plan_removes_blocks_and_then_channels(make_network: Make) -> None:
    network = make_network()
    plan = plan_with_blocks(network)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.structure == structure(network)
    assert plan.weights == fingerprint(network)
    assert not any("stage1.block2" in group.layer for group in plan.groups)
    left = copy.deepcopy(network)
    remove_blocks(left, [block.name for block in GONE])
    by_hand = copy.deepcopy(left)
    apply_plan(by_hand, SHAPE, plan_for(left, original_widths=layer_widths(network)))
    apply_plan(network, SHAPE, plan)
    assert fingerprint(network) == fingerprint(by_hand)
    assert set(layer_widths(network).values()) == {18, 37, 75}
    assert removed_blocks(network) == [block.name for block in GONE]
    with pytest.raises(UserError, match="applied already"):
        apply_plan(network, SHAPE, plan)


def test_a_budget_is_that_of_what_is_left(make_network: Make) -> None:
    network = make_network()
    plan = plan_with_blocks(network, budget="params<=20000")
    apply_plan(network, SHAPE, plan)
    assert 19_900 < parameters(network) <= 20_000


def test_blocks_alone_leave_every_channel(make_network: Make) -> None:
    network = make_network(base_channels=4)
    plan = with_blocks(network, GONE, None)
    shown = preview(network, SHAPE, [plan])
    assert shown["removed_blocks"] == [
        {"name": "stage1.block2", "score": 0.25},
        {"name": "stage3.block2", "score": None},
    ]
    left = without_blocks(network, GONE)
    assert shown["after"]["parameters"] == parameters(left)
    layers = {layer["name"]: layer for layer in shown["layers"]}
    assert layers["stage1.block2.conv1"]["before"] == 4
    assert layers["stage1.block2.conv1"]["after"] == 0
    assert layers["stage1.block2.conv1"]["macs_after"] == 0
    assert layers["stage1.block1.conv1"]["after"] == 4
    assert shown["left_alone"].keys() == {"feed_forward.0"}
    apply_plan(network, SHAPE, plan)
    assert fingerprint(network) == fingerprint(left)


def test_the_optimizers_state_of_a_block_goes_with_it(make_network: Make) -> None:
    network = make_network(base_channels=4)
    kept = kept_entries(network, SHAPE, plan_with_blocks(network))
    values = {f"{name}/exp_avg": p.detach() for name, p in network.named_parameters()}
    values |= {f"{name}/step": torch.tensor(3.0) for name, _ in network.named_parameters()}
    carried = carry(values, kept)
    apply_plan(network, SHAPE, plan_with_blocks(network))
    own = dict(network.named_parameters())
    assert carried.keys() == {f"{name}/{key}" for name in own for key in ("exp_avg", "step")}
    assert all(torch.equal(carried[f"{name}/exp_avg"], p) for name, p in own.items())


def test_a_plan_is_read_back_and_an_edited_one_checked(make_network: Make, tmp_path: Path) -> None:
    network, file = make_network(base_channels=4), tmp_path / "plan.json"
    for plan in (plan_with_blocks(network), with_blocks(network, GONE, None)):
        write_plan(file, plan)
        assert read_plan(file, network, SHAPE) == plan
    written = json.loads(file.read_text())
    for names in (["stage2.block1"], ["stage9"], ["in_c"], ["stage1.block2"] * 2, [""]):
        blocks = [{"name": name} for name in names]
        file.write_text(json.dumps({**written, "removed_blocks": blocks}))
        with pytest.raises(
            UserError, match=r"plan\.json: its removed_blocks must be some of stage1"
        ):
            read_plan(file, network, SHAPE)
    # A group that goes with its block.
    group = {"layer": "stage1.block2.conv1", "width": 4, "keep": [0]}
    file.write_text(json.dumps({**written, "groups": [group]}))
    with pytest.raises(UserError, match="its groups must be some of"):
        read_plan(file, network, SHAPE)


def test_plans_of_older_versions_remove_no_block(make_network: Make, tmp_path: Path) -> None:
    network = make_network(base_channels=4)
    document = plan_for(network).to_json()
    del document["removed_blocks"]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert read_plan(tmp_path / "plan.json", network, SHAPE) == plan_for(network)


def test_a_plan_whose_block_is_none(make_network: Make) -> None:
    network = make_network(base_channels=4)
    plan = replace(with_blocks(network, GONE, None), removed_blocks=[RemovedBlock("in_c.0")])
    with pytest.raises(UserError, match=r"the pruning plan does not fit the network: .*no block"):
        apply_plan(network, SHAPE, plan)
