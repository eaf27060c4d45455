"""Control of single layers: prune.ignore, prune.ratios and prune.max_ratio."""

import fnmatch
import math

import numpy as np
import pytest
import torch
from marks import slow
from networks import plan_for
from torch import nn

import cpprune
from cpprune.evaluation.complexity import count_parameters
from cpprune.evaluation.operations import count_operations
from cpprune.models.resize import layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.plan import collapsed
from cpprune.pruning.preview import preview
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

SHAPE = (1, 64, 44)
TIMM = {"pretrained": False, "in_chans": 1}
NETWORKS = {
    "cp_resnet": {"widths": [12, 16, 24]},
    "cp_mobile": {},
    "resnet10t": {**TIMM, "channels": [8, 16, 24, 32]},
    "test_efficientnet": TIMM,
    "test_byobnet": TIMM,
}


def build(name):
    torch.manual_seed(0)
    if name.startswith("cp_"):
        return cpprune.build_model(name, **NETWORKS[name])
    return cpprune.build_model("timm:create_model", model_name=name, **NETWORKS[name])


def some(rng, layers, most):
    """Up to so many names of layers, and sometimes a pattern."""
    names = [str(layer) for layer in rng.choice(layers, rng.integers(0, most + 1), replace=False)]
    if rng.random() < 0.5:
        names.append(layers[int(rng.integers(len(layers)))].rsplit(".", 1)[0] + "*")
    return names


def matches(layer, patterns):
    return any(fnmatch.fnmatch(layer, pattern) for pattern in patterns)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [seed if seed < 1 else slow(seed) for seed in range(8)])
def test_random_settings_are_honoured_to_the_channel(name, seed):
    rng = np.random.default_rng([seed, len(name)])
    network = build(name)
    before = layer_widths(network)
    layers = list(before)
    ignore = some(rng, layers, 2)
    max_ratio = float(rng.choice([0.35, 0.6, 1.0]))
    own = round(float(rng.uniform(0, 0.95 * max_ratio)), 2)
    ratios = dict.fromkeys(some(rng, layers, 2), own)
    scope = str(rng.choice(["local", "global", "isomorphic"]))
    how = {"ratio": float(rng.choice([0.3, 0.7]))}
    kind = str(rng.choice(["params", "operations"]))
    cost = {"params": count_parameters, "operations": lambda n: count_operations(n, SHAPE)}[kind]
    whole = cost(network)
    if rng.random() < 0.4:
        how = {"budget": f"{kind}<={int(0.8 * whole)}"}
    settings = {**how, "ignore": ignore, "ratios": ratios, "max_ratio": max_ratio, "scope": scope}
    try:
        plan = plan_for(network, SHAPE, **settings)
    except UserError as error:
        refusals = ("cannot be met", "leaves nothing", "matches no layer that can be pruned")
        assert any(refusal in str(error) for refusal in refusals)  # noqa: PT017
        return
    unpruned = preview(network, SHAPE, [plan])["left_alone"]
    apply_plan(network, SHAPE, plan)
    after = layer_widths(network)
    for layer in layers:
        if matches(layer, ignore) or layer in unpruned:
            assert after[layer] == before[layer]
        elif matches(layer, ratios):
            least = math.ceil(before[layer] * (1 - max_ratio) - 1e-9)
            exact = math.floor(before[layer] * (1 - own) + 1e-9)
            assert after[layer] == max(1, least, exact)
        assert after[layer] >= before[layer] * (1 - max_ratio) - 1e-9
    if "budget" in how:
        assert cost(network) <= 0.8 * whole
        assert ratios or cost(network) > 0.7 * whole


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ramp", ["widths", "cubic"])
def test_ratios_are_approached_in_steps(scope, ramp):
    network = build("cp_resnet")
    original = layer_widths(network)
    ratios = {"stage1.block1.conv1": 0.5, "stage3.*": 0}
    settings = {"ratio": 0.3, "ratios": ratios, "scope": scope, "ramp": ramp}
    seen = []
    for fraction in (1 / 3, 2 / 3, 1):
        plan = plan_for(network, SHAPE, **settings, original_widths=original, fraction=fraction)
        apply_plan(network, SHAPE, plan)
        widths = layer_widths(network)
        seen.append(widths["stage1.block1.conv1"])
        assert all(widths[name] == original[name] for name in original if "stage3" in name)
    if ramp == "widths":
        assert seen == [10, 8, 6]
    assert seen[-1] == 6
    assert seen == sorted(seen, reverse=True)
    free = ("in_c.0", "stage2.block1.conv2", *(f"stage{s}.block{b}.conv1" for s, b in FREE))
    assert sum(widths[n] for n in free) == math.floor(sum(original[n] for n in free) * 0.7) or (
        scope == "local"
    )


# Blocks whose inner layer has no ratio of its own.
FREE = ((1, 2), (2, 1), (2, 2))


def test_ratios_alone_cut_nothing_else():
    network = build("cp_resnet")
    before = layer_widths(network)
    for scope in ("local", "global", "isomorphic"):
        plan = plan_for(network, SHAPE, ratio=None, ratios={"stage2.*.conv1": 0.25}, scope=scope)
        cut = {group.layer: len(group.removed) for group in plan.groups if group.removed}
        assert cut == {"stage2.block1.conv1": 4, "stage2.block2.conv1": 4}
    assert before["stage2.block1.conv1"] == 16
    assert PruneConfig(ratios={"a": 0.1}).prunes


def test_the_last_pattern_counts():
    ratios = {"stage1.*.conv1": 0.5, "stage1.block2.*": 0.25, "stage1.block2.conv2": 0}
    plan = plan_for(build("cp_resnet"), SHAPE, ratio=0.75, ratios=ratios)
    kept = {group.layer: len(group.keep) for group in plan.groups}
    assert kept["stage1.block1.conv1"] == 6
    assert kept["stage1.block2.conv1"] == 9
    assert kept["in_c.0"] == 12  # coupled with stage1.block2.conv2
    assert kept["stage2.block1.conv1"] == 4


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        (
            {"stage1.block1.konv1": 0.5},
            r"prune.ratios: no layer is called stage1.block1.konv1; did you mean stage1.block1.conv1\?",
        ),
        ({"stagge1.*": 0.5}, r"no layer is called stagge1.\*; did you mean stage1.\*\?"),
        ({"feed_*": 0.5}, r"prune.ratios: feed_\* matches no layer that can be pruned"),
        (
            {"stage1.block1.conv2": 0.5, "in_c.*": 0.25},
            r"in_c.0 \(0.25\) and stage1.block1.conv2 \(0.5\) lose the same channels",
        ),
    ],
)
def test_ratios_that_cannot_be_honoured(ratios, message):
    with pytest.raises(UserError, match=message):
        plan_for(build("cp_resnet"), SHAPE, ratio=0.5, ratios=ratios)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratios": {"a": 1.0}}, "prune.ratios: a: 1.0: must be at least 0"),
        ({"ratios": {"a": -0.1}}, "prune.ratios: a: -0.1: must be at least 0"),
        ({"ratios": {"a": float("nan")}}, "must be at least 0"),
        ({"ratios": {"a": 0.5}, "max_ratio": 0.4}, "a: 0.5: is above prune.max_ratio=0.4"),
        ({"ratios": {"a": 0.5}, "plan": "p.json"}, "leave out prune.ratios"),
    ],
)
def test_ratios_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        PruneConfig(**settings)


def test_a_budget_is_met_around_fixed_ratios():
    network = build("cp_resnet")
    ratios = {"stage3.*": 0.5}
    small = build("cp_resnet")
    apply_plan(small, SHAPE, plan_for(small, SHAPE, budget="params<=6000", ratios=ratios))
    assert 5900 < count_parameters(small) <= 6000
    before, after = layer_widths(network), layer_widths(small)
    assert all(after[name] == before[name] // 2 for name in before if name.startswith("stage3."))
    with pytest.raises(UserError, match=r"cannot be met even at the least widths .*prune.ratios"):
        plan_for(network, SHAPE, budget="params<=2000", ratios={"stage3.*": 0})


def test_what_is_ignored_is_listed():
    network = build("cp_resnet")
    ignored = "stage1.block1.conv1"
    plan = plan_for(network, SHAPE, ratio=0.5, ignore=[ignored])
    reasons = preview(network, SHAPE, [plan])["left_alone"]
    assert reasons[ignored] == "is not in the plan (prune.ignore)"


def test_a_pattern_that_fits_nothing():
    with pytest.raises(UserError, match=r"prune.ignore: no layer is called stage1.block1.konv1"):
        plan_for(build("cp_resnet"), SHAPE, ratio=0.5, ignore=["stage1.block1.konv1"])
    with pytest.raises(UserError, match="leaves nothing"):
        plan_for(build("cp_resnet"), SHAPE, ratio=0.5, ignore=["*"])


def test_a_global_cut_removes_what_was_asked_for_around_the_narrowest():
    network = nn.Sequential(
        nn.Conv2d(1, 20, 1), nn.Conv2d(20, 20, 1), nn.Conv2d(20, 3, 1), nn.AdaptiveAvgPool2d(1)
    ).append(nn.Flatten())
    with torch.no_grad():
        for tensor in (network[1].weight, network[1].bias, network[2].weight):
            tensor.mul_(1e-6)
    free = plan_for(network, SHAPE, ratio=0.5, scope="global", normaliser="none")
    assert {group.layer: len(group.keep) for group in free.groups} == {"0": 19, "1": 1}
    held = plan_for(network, SHAPE, ratio=0.5, scope="global", normaliser="none", max_ratio=0.8)
    assert {group.layer: len(group.keep) for group in held.groups} == {"0": 16, "1": 4}
    assert "(20 → 1)" in collapsed(free, layer_widths(network))
    assert collapsed(held, layer_widths(network)) == ""


def test_a_budget_around_ignored_layers():
    network = build("cp_resnet")
    budget = "params<=9000"
    small = build("cp_resnet")
    apply_plan(small, SHAPE, plan_for(small, SHAPE, budget=budget, ignore=["stage3.*"]))
    assert count_parameters(small) <= 9000
    before, after = layer_widths(network), layer_widths(small)
    assert all(after[name] == before[name] for name in before if name.startswith("stage3."))
