"""Plans as data: written, read back, previewed, and applied to the structure they were made for."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from networks import SHAPE, parameters, plan_for
from torch import nn

from cpprune.models.fingerprint import fingerprint, structure
from cpprune.models.resize import layer_widths
from cpprune.pruning.plan import Plan, plan_bytes, read_plan, write_plan
from cpprune.pruning.preview import preview
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

Make = Callable[..., nn.Module]


def test_a_plan_is_json_and_the_same_twice(make_network: Make) -> None:
    network = make_network()
    for scope in ("local", "global"):
        plan = plan_for(network, scope=scope)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        assert json.loads(plan_bytes(plan)) == json.loads(json.dumps(plan.to_json()))
        assert plan_for(network, scope=scope) == plan
        assert plan_for(copy.deepcopy(network), scope=scope) == plan
        assert plan.criterion == "magnitude"
        assert plan.scope == scope
        assert plan.structure == structure(network)
    twins = [copy.deepcopy(network) for _ in range(2)]
    apply_plan(twins[0], SHAPE, plan)
    apply_plan(twins[1], SHAPE, Plan.from_json(json.loads(json.dumps(plan.to_json()))))
    assert fingerprint(twins[0]) == fingerprint(twins[1]) != fingerprint(network)


def test_a_plan_is_read_back_for_its_network_alone(make_network: Make, tmp_path: Path) -> None:
    network = make_network(base_channels=4)
    plan = plan_for(network)
    file = tmp_path / "plan.json"
    write_plan(file, plan)
    assert read_plan(file, network, SHAPE) == plan
    # Other weights of the same structure may have other channels worth keeping.
    for other in (make_network(seed=1, base_channels=4), make_network(base_channels=5)):
        with pytest.raises(UserError, match=r"plan\.json: was made for another network"):
            read_plan(file, other, SHAPE)
    apply_plan(network, SHAPE, plan)
    with pytest.raises(UserError, match=r"plan\.json: was made for another network"):
        read_plan(file, network, SHAPE)
    with pytest.raises(UserError, match=r"plan\.json/below: cannot be written"):
        write_plan(file / "below", plan)
    with pytest.raises(UserError, match=r"nothing\.json: cannot be read"):
        read_plan(tmp_path / "nothing.json", network, SHAPE)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"groups": [3]}', '{"groups": []}'])
def test_what_is_no_plan_is_named(text: str, make_network: Make, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"plan\.json: .*; make a pruning plan with"):
        read_plan(file, make_network(widths=[2, 3, 4]), SHAPE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("keep", []),
        ("keep", [1, 0]),
        ("keep", [0, 0]),
        ("keep", [0, 99]),
        ("keep", [-1, 0]),
        ("keep", ["0"]),
        ("keep", [0.5]),
        ("keep", 1),
        ("keep", None),
        ("layer", "stage4.block1.conv1"),
        ("layer", "feed_forward.0"),
        ("layer", 3),
        ("width", 99),
        ("width", "8"),
    ],
)
def test_an_edited_plan_is_checked(
    key: str, value: Any, make_network: Make, tmp_path: Path
) -> None:
    network = make_network(base_channels=4)
    before = fingerprint(network)
    plan = plan_for(network)
    document = plan.to_json()
    document["groups"][1][key] = value
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"plan\.json: "):
        apply_plan(network, SHAPE, read_plan(tmp_path / "plan.json", network, SHAPE))
    assert fingerprint(network) == before


def test_making_a_plan_changes_nothing(make_network: Make) -> None:
    network = make_network()
    network.train()
    network.stage2.eval()
    network.stage1.requires_grad_(False)
    print_before = fingerprint(network)
    modes = [module.training for module in network.modules()]
    flags = [p.requires_grad for p in network.parameters()]
    ids = [id(p) for p in network.parameters()]
    plan = plan_for(network)
    figures = preview(network, SHAPE, [plan])
    assert fingerprint(network) == print_before
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == flags
    assert [id(p) for p in network.parameters()] == ids
    assert figures["before"]["parameters"] == 131_316
    assert figures["after"]["parameters"] == 44_784
    assert figures["after"]["macs"] < figures["before"]["macs"]
    for name, byte in (("fp32", 4), ("fp16", 2), ("int8", 1)):
        assert figures["after"]["bytes"][name] == 44_784 * byte
    layers = {layer["name"]: (layer["before"], layer["after"]) for layer in figures["layers"]}
    assert layers["in_c.0"] == (32, 18)
    assert layers["stage2.block1.shortcut.conv"] == (64, 37)
    assert layers["stage3.block2.conv1"] == (128, 75)
    assert set(layers) == set(layer_widths(network))
    assert json.loads(json.dumps(figures)) == figures


def test_preview_of_several_steps(make_network: Make) -> None:
    network = make_network()
    twin = copy.deepcopy(network)
    plans = []
    for fraction in (1 / 3, 2 / 3, 1.0):
        plans.append(plan_for(twin, fraction=fraction, original_widths=layer_widths(network)))
        apply_plan(twin, SHAPE, plans[-1])
    assert preview(network, SHAPE, plans)["after"]["parameters"] == 44_784
    assert parameters(network) == 131_316


def test_a_plan_is_applied_once(make_network: Make) -> None:
    network = make_network()
    plan = plan_for(network)
    apply_plan(network, SHAPE, plan)
    after = fingerprint(network)
    with pytest.raises(UserError, match=r"another structure \(or is applied already\)"):
        apply_plan(network, SHAPE, plan)
    assert fingerprint(network) == after
    for config in ({"widths": [32, 64, 127]}, {"channels_multiplier": 1}, {"rho": 6}):
        other = make_network(**config)
        with pytest.raises(UserError, match="another structure"):
            apply_plan(other, SHAPE, plan)
    assert parameters(other) != 44_784


def test_a_plan_fits_any_weights_of_its_structure(make_network: Make) -> None:
    plan = plan_for(make_network(seed=1))
    other = make_network(seed=2)
    apply_plan(other, SHAPE, plan)
    assert parameters(other) == 44_784
