"""The memory of a network in C, foreseen from the graph of a wider one."""

import copy

import pytest
from networks import plan_for

import cpprune
from cpprune.export.ram import Memory, ram_bytes
from cpprune.pruning.surgery import apply_plan

SHAPE = (1, 64, 32)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("cp_resnet", {"widths": [6, 8, 10]}), ("cp_mobile", {"base_channels": 8})],
)
def test_narrower_networks_are_foreseen(name, settings, precision):
    network = cpprune.build_model(name, **settings).eval()
    memory = Memory(network, SHAPE, precision)
    assert memory.of(network) == ram_bytes(network, SHAPE, precision)
    assert memory.right is None
    for ratio in (0.5, 0.3):
        twin = copy.deepcopy(network)
        apply_plan(twin, SHAPE, plan_for(twin, SHAPE, ratio=ratio))
        found = memory.of(twin)
        assert memory.right
        assert found == ram_bytes(twin, SHAPE, precision) < memory.of(network)


@pytest.mark.slow
def test_what_cannot_be_foreseen_is_exported(monkeypatch):
    """Here, because the sizes of the wide network are taken for those of the narrow one."""
    monkeypatch.setattr("cpprune.export.ram._with_sizes", lambda graph, before, after: graph)
    network = cpprune.build_model("cp_resnet", widths=[6, 8, 10]).eval()
    memory = Memory(network, SHAPE, "fp32")
    apply_plan(network, SHAPE, plan_for(network, SHAPE, ratio=0.5))
    assert memory.of(network) == ram_bytes(network, SHAPE, "fp32")
    assert memory.right is False
