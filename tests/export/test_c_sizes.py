"""RAM and flash of a network in C: those of an export, and foreseen from the graph of a wider one."""

import copy
from types import SimpleNamespace

import pytest
from export_jobs import job_of
from networks import plan_for

import cpprune
from cpprune.export.c.host import sizes
from cpprune.export.c_sizes import InC, flash_bytes, ram_bytes
from cpprune.export.target import targets
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

SHAPE = (1, 64, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "precision"),
    [("cp_resnet", {"widths": [6, 8, 10]}, "int8"), ("cp_mobile", {"base_channels": 8}, "fp32")],
)
def test_narrower_networks_are_foreseen(name, settings, precision):
    network = cpprune.build_model(name, **settings).eval()
    in_c = InC(network, SHAPE, precision)
    assert in_c.ram(network) == ram_bytes(network, SHAPE, precision)
    assert in_c.right is None
    twin = copy.deepcopy(network)
    apply_plan(twin, SHAPE, plan_for(twin, SHAPE, ratio=0.4))
    found = in_c.ram(twin)
    assert in_c.right
    assert found == ram_bytes(twin, SHAPE, precision) < in_c.ram(network)


@pytest.mark.slow
def test_what_cannot_be_foreseen_is_exported(monkeypatch):
    """Here, because the sizes of the wide network are taken for those of the narrow one."""
    monkeypatch.setattr("cpprune.export.c_sizes._with_sizes", lambda graph, before, after: graph)
    network = cpprune.build_model("cp_resnet", widths=[6, 8, 10]).eval()
    in_c = InC(network, SHAPE, "fp32")
    apply_plan(network, SHAPE, plan_for(network, SHAPE, ratio=0.5))
    assert in_c.ram(network) == ram_bytes(network, SHAPE, "fp32")
    assert in_c.right is False


def flash_of(files, *names):
    return sizes({name: files[name].decode() for name in names})["flash"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_flash_is_that_of_an_export_without_the_wrapper(exported, precision):
    """In int8 to a few bytes, by the zero points, and never less."""
    model = exported("small").model
    product = targets()["c"].make(job_of(model, "features", precision))
    found = flash_bytes(model.network, model.input_shape, precision)
    alone = flash_of(product.files, "network.c")
    wrapper = flash_of(product.files, "model.c", "model.h")
    assert product.complexity["bytes"]["flash"] == alone + wrapper
    assert alone <= found <= (alone if precision == "fp32" else 1.005 * alone)


@pytest.mark.slow
def test_the_flash_of_narrower_networks_is_foreseen():
    network = cpprune.build_model("cp_mobile", base_channels=8).eval()
    in_c = InC(network, SHAPE, "int8")
    whole = in_c.flash(network)
    apply_plan(network, SHAPE, plan_for(network, SHAPE, ratio=0.4))
    found = in_c.flash(network)
    assert in_c.right
    assert found == flash_bytes(network, SHAPE, "int8") < whole


def test_flash_without_a_compiler(monkeypatch):
    monkeypatch.setattr("cpprune.export.c.host.sizes", lambda sources: None)
    source = SimpleNamespace(text="")
    monkeypatch.setattr("cpprune.export.c_sizes._source", lambda *_: source)
    with pytest.raises(UserError, match=r"flash of an export in int8 .* install arm-none-eabi-gcc"):
        flash_bytes(None, SHAPE, "int8")
