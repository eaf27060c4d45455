"""Budgets of what a network takes once it is exported: met by the exported file itself."""

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from networks import Fickle, plan_for
from torch import nn

import cpprune
from cpprune.export.c.host import sizes
from cpprune.export.c_sizes import flash_bytes, ram_bytes
from cpprune.export.metadata import Precision
from cpprune.export.sizes import exported_bytes
from cpprune.models import artifact
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

SHAPE = (1, 64, 32)


def bytes_in(file: Path) -> int:
    """Bytes of all constants of an ONNX file that takes features, so that it has no front end."""
    constants = onnx.load(file).graph.initializer
    return sum(onnx.numpy_helper.to_array(constant).nbytes for constant in constants)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("int8", 4500), ("fp16", 4000)])
def test_the_exported_file_meets_the_budget(
    cli: Any, tiny_run: Path, scenes: Path, tmp_path: Path, precision: str, bound: int
) -> None:
    budget = f"exported<={bound}@{precision}"
    words_of_run = ["--init", tiny_run / "model", "--data.path", scenes, "--prune.budget", budget]
    words = ["--run", tmp_path / "run", "--train.epochs", 1, "--train.batch_size", 64]
    pruned = cli("prune", *words_of_run, *words)
    assert pruned.status == 0, pruned.err
    assert f"budget: {budget} is met" in pruned.err
    out = tmp_path / "a.onnx"
    words = ["--precision", precision, "--input", "features", "--out", out, "--json"]
    words += ["--data", scenes, "--calibration-clips", 16] if precision == "int8" else []
    found = cli("export", tmp_path / "run/model", *words).json
    assert found["bytes"]["network"] == bytes_in(out)
    assert 0.96 * bound < bytes_in(out) <= bound
    foreseen = cli("prune", *words_of_run, "--dry-run").out
    assert re.search(rf"bytes exported@{precision} +[\d,]+ → {bytes_in(out):,} ", foreseen)


@pytest.mark.slow
def test_another_family() -> None:
    network = cpprune.build_model("cp_mobile", base_channels=8)
    before = exported_bytes(network, SHAPE, "fp32")
    apply_plan(
        network, SHAPE, plan_for(network, SHAPE, ratio=None, budget=f"exported<={before // 2}@fp32")
    )
    assert 0.9 * (before // 2) < exported_bytes(network, SHAPE, "fp32") <= before // 2


@pytest.mark.slow
def test_quantised_networks_are_counted_as_they_are_exported(
    cli: Any, quantised_run: Path, tmp_path: Path
) -> None:
    model = artifact.load(quantised_run / "model")
    words = ["--precision", "int8", "--input", "features", "--out", tmp_path / "a.onnx"]
    assert cli("export", quantised_run / "model", *words).status == 0
    found = exported_bytes(model.network, model.input_shape, "int8")
    assert found == bytes_in(tmp_path / "a.onnx")


@pytest.mark.slow
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(2))
    network.append(nn.AdaptiveAvgPool1d(1)).append(nn.Flatten())
    least = r"exported<=10@fp32 \(at least [\d,]+ bytes\) cannot be met"
    with pytest.raises(UserError, match=least):
        plan_for(network, (1, 12, 12), ratio=None, budget="exported<=10@fp32")
    with pytest.raises(UserError, match="exported bytes in fp32 cannot be foreseen"):
        plan_for(Fickle(), (1, 16, 16), ratio=None, budget="exported<=1000@fp32")
    monkeypatch.setattr("cpprune.export.target.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cpprune\[export\]'"):
        plan_for(network, (1, 12, 12), ratio=None, budget="exported<=1000@fp32")


@pytest.mark.slow
def test_the_memory_of_the_c_meets_the_budget(
    cli: Any, tiny_run: Path, scenes: Path, tmp_path: Path
) -> None:
    precision: Precision = "int8"
    model = artifact.load(tiny_run / "model")
    whole = ram_bytes(model.network, model.input_shape, precision)
    budget = f"ram<={int(0.6 * whole)}@{precision}"
    plan = tmp_path / "plan.json"
    words = ["--init", tiny_run / "model", "--prune.budget", budget]
    shown = cli("prune", *words, "--dry-run", "--prune.save_plan", plan, "--json").json
    after = shown["after"]["ram_bytes"][precision]
    assert shown["before"]["ram_bytes"][precision] == whole
    assert 0.4 * whole < after <= 0.6 * whole
    # What lies in memory at other times is as wide as it was.
    widths = {layer["name"]: (layer["before"], layer["after"]) for layer in shown["layers"]}
    assert widths["in_c.0"][1] < widths["in_c.0"][0]
    assert widths["stage3.block1.conv1"][1] == widths["stage3.block1.conv1"][0]
    words = ["--prune.plan", plan, "--data.path", scenes, "--run", tmp_path / "run"]
    words += ["--train.epochs", 1, "--train.batch_size", 64, "--init", tiny_run / "model"]
    assert cli("prune", *words).status == 0
    words = ["--precision", precision, "--input", "features", "--to", "c", "--json"]
    words += ["--data", scenes, "--calibration-clips", 16, "--out", tmp_path / "c"]
    found = cli("export", tmp_path / "run/model", *words).json
    assert found["bytes"]["ram"] == after


@pytest.mark.slow
def test_the_flash_of_the_c_meets_the_budget(
    cli: Any, tiny_run: Path, scenes: Path, tmp_path: Path
) -> None:
    model = artifact.load(tiny_run / "model")
    whole = flash_bytes(model.network, model.input_shape, "int8")
    budget = f"flash<={int(0.8 * whole)}@int8"
    words = ["--init", tiny_run / "model", "--prune.budget", budget, "--data.path", scenes]
    shown = cli("prune", *words, "--dry-run", "--json").json
    after = shown["after"]["flash_bytes"]["int8"]
    assert shown["before"]["flash_bytes"]["int8"] == whole
    assert 0.7 * whole < after <= 0.8 * whole
    words += ["--run", tmp_path / "run", "--train.epochs", 1, "--train.batch_size", 64]
    pruned = cli("prune", *words)
    assert f"budget: {budget} is met" in pruned.err
    words = ["--precision", "int8", "--input", "features", "--to", "c", "--json"]
    words += ["--data", scenes, "--calibration-clips", 16, "--out", tmp_path / "c"]
    found = cli("export", tmp_path / "run/model", *words).json
    wrapper = sizes({name: (tmp_path / "c" / name).read_text() for name in ("model.c", "model.h")})
    assert wrapper is not None
    alone = found["bytes"]["flash"] - wrapper["flash"]
    assert 0.995 * after < alone <= after


@pytest.mark.slow
def test_an_export_that_is_timed_here_meets_the_budget(cli: Any) -> None:
    """Nothing is said of the time itself, which depends on what else the machine does."""
    words = ["prune", "--dry-run", "--model.widths", "[6, 8, 10]", "--prune.budget"]
    shown = cli(
        *words, "latency<=1000s@onnx-int8,latency<=1000s@c-fp32,params<=1500", "--json"
    ).json
    assert shown["after"]["parameters"] <= 1500
    assert shown["after"]["exported_latency_ms"].keys() == {"onnx-int8", "c-fp32"}
    assert all(0 < ms < 1e6 for ms in shown["after"]["exported_latency_ms"].values())
