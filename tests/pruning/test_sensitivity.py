"""`cpprune sensitivity`: its figures are those of networks cut by hand, and its files agree."""

import csv
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import plan_for

import cpprune
import shards
from cpprune.evaluation.plots import COLOURS
from cpprune.evaluation.predict import evaluate_model
from cpprune.models.resize import layer_widths
from cpprune.pruning.sensitivity import measure_sensitivity

RATIOS = [0.25, 0.6, 0.9]
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def measured(
    tiny_run: Path, scenes: Path, call: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that the command wrote for the tiny network."""
    folder = tmp_path_factory.mktemp("sensitivity") / "new" / "folder"
    settings = ["--data", scenes, "--ratios", "0.6,0.25,0.9", "--out", folder]
    assert call("sensitivity", tiny_run / "model", *settings) == 0
    return folder


@pytest.fixture
def found(measured: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((measured / "sensitivity.json").read_text())
    return content


def test_what_it_is_of(found: dict[str, Any], tiny_run: Path, scenes: Path) -> None:
    model = cpprune.load(tiny_run / "model")
    layers = {row["layer"]: row["width"] for row in found["layers"]}
    assert len(layers) == 9
    assert layers.items() <= layer_widths(model.network).items()
    assert "feed_forward.0" not in layers
    order = list(layer_widths(model.network))
    assert [order.index(layer) for layer in layers] == sorted(map(order.index, layers))
    split = shards.open_dataset(scenes).split("val")
    expected, _ = evaluate_model(model, split, torch.device("cpu"))
    for key in ("macro_accuracy", "log_loss"):
        assert found["baseline"][key] == pytest.approx(expected[key], abs=1e-5)
    assert (found["split"], found["clips"], found["criterion"]) == ("val", 22, "magnitude")
    assert found["ratios"] == RATIOS
    assert found["dataset"] == split.dataset.fingerprint


@pytest.mark.parametrize(
    ("layer", "norms"),
    [
        ("stage2.block1.conv1", ["stage2.block1.bn1"]),
        ("stage1.block2.conv1", ["stage1.block2.bn1"]),
        ("stage3", ["stage3.block1.bn2", "stage3.block1.shortcut.bn", "stage3.block2.bn2"]),
    ],
)
def test_the_figures_are_those_of_a_network_silenced_by_hand(
    layer: str, norms: list[str], found: dict[str, Any], tiny_run: Path, scenes: Path
) -> None:
    split = shards.open_dataset(scenes).split("val")
    inner = layer.endswith("conv1")
    for number, ratio in enumerate(RATIOS):
        model = cpprune.load(tiny_run / "model")
        plan = plan_for(model.network, model.input_shape, ratio=ratio)
        (entry,) = [
            entry
            for entry in plan.groups
            if entry.layer.startswith(layer) and entry.layer.endswith("conv1") == inner
        ]
        cut = [c for c in range(entry.width) if c not in entry.keep]
        for name in norms:  # a channel that is always zero after them is as good as gone
            norm = model.network.get_submodule(name)
            norm.weight.data[cut] = 0
            norm.bias.data[cut] = 0
        expected, _ = evaluate_model(model, split, torch.device("cpu"))
        (row,) = [row for row in found["layers"] if row["layer"] == entry.layer]
        assert row["widths"][number] == len(entry.keep)
        for key in ("macro_accuracy", "log_loss"):
            assert row[key][number] == pytest.approx(expected[key], abs=1e-5)
        assert row["log_loss"][number] != pytest.approx(found["baseline"]["log_loss"], abs=1e-5)


def test_the_table_says_the_same(measured: Path, found: dict[str, Any]) -> None:
    with (measured / "sensitivity.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9 * len(RATIOS)
    for line, (row, number) in zip(
        lines, ((row, n) for row in found["layers"] for n in range(len(RATIOS))), strict=True
    ):
        assert line["layer"] == row["layer"]
        assert int(line["width_before"]) == row["width"]
        assert float(line["ratio"]) == row["ratios"][number] == RATIOS[number]
        assert int(line["width"]) == row["widths"][number]
        assert 1 <= row["widths"][number] == max(1, int(row["width"] * (1 - RATIOS[number]) + 1e-9))
        for key in ("macro_accuracy", "log_loss"):
            assert float(line[key]) == row[key][number]


def test_the_picture_is_one(measured: Path) -> None:
    import matplotlib.image

    path = measured / "sensitivity.png"
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (1800, 750)
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    for colour in COLOURS:  # nine lines, so each of the seven colours is there
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == wanted).all(-1).sum() > 100, colour
    # In both panels, not in the legend alone: lines may lie upon each other, but not all of them.
    for panel in (slice(100, 700), slice(850, 1450)):
        seen = [
            (pixels[:, panel] == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum()
            for colour in COLOURS
        ]
        assert sum(count > 50 for count in seen) >= 2


@pytest.mark.slow
def test_what_is_printed(tiny_run: Path, scenes: Path, tmp_path: Path, cli: Cli) -> None:
    command = ["sensitivity", tiny_run / "model", "--data", scenes, "--clips", 5]
    command += ["--ratios", "0.5", "--split", "test", "--criterion", "taylor", "--out", tmp_path]
    first = cli(*command, "--json").json
    assert first == json.loads((tmp_path / "sensitivity.json").read_text())
    assert (first["clips"], first["split"], first["criterion"]) == (5, "test", "taylor")
    shown = cli(*command)
    assert shown.status == 0
    assert json.loads((tmp_path / "sensitivity.json").read_text()) == first
    lines = shown.out.splitlines()
    losses = {row["layer"]: row["log_loss"][0] for row in first["layers"]}
    (marked,) = [line for line in lines if line.endswith(" *")]
    assert marked.split()[0] == min(losses, key=losses.__getitem__) == first["least_sensitive"]
    for row in first["layers"]:
        (line,) = [line for line in lines if line.startswith(f"{row['layer']} ")]
        assert line.split()[1:3] == [str(row["width"]), f"{row['macro_accuracy'][0]:.4f}"]


def test_a_layer_that_cannot_be_cut_is_not_the_least_sensitive(
    tiny_run: Path, scenes: Path
) -> None:
    model = cpprune.load(tiny_run / "model")
    model.network = cpprune.build_model("cp_resnet", widths=[1, 2, 3])
    split = shards.open_dataset(scenes).split("val")
    found = measure_sensitivity(model, split, criterion="magnitude", ratios=[0.5], clips=2)
    assert found["layers"][0]["widths"] == [found["layers"][0]["width"]] == [1]
    assert found["least_sensitive"].startswith(("stage2", "stage3"))


def test_without_matplotlib_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli
) -> None:
    monkeypatch.setattr("cpprune.evaluation.plots.find_spec", lambda name: None)
    refused = cli(
        "sensitivity", tmp_path / "no-model", "--data", tmp_path, "--out", tmp_path / "out"
    )
    assert refused.status == 2
    expected = "cpprune sensitivity draws with matplotlib: pip install 'cpprune[report]'"
    assert refused.err == f"cpprune: error: {expected}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratios", "0.1,1"], "--ratios '0.1,1': must be numbers above 0 and below 1"),
        (["--ratios", "half"], "--ratios 'half': must be numbers"),
        (["--ratios", ""], "--ratios '': must be numbers"),
        (["--ratios", "nan"], "--ratios 'nan': must be numbers"),
        (["--clips", "0"], "--clips 0: must be at least 1"),
        (["--criterion", "size"], "--criterion 'size': choose one of magnitude, "),
        (["--split", "validation"], "validation"),
        (["--out", "{file}"], "is a file; name a folder"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, tiny_run: Path, scenes: Path, tmp_path: Path, cli: Cli
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    given = [argument.format(file=file) for argument in arguments]
    refused = cli("sensitivity", tiny_run / "model", "--data", scenes, *given)
    assert refused.status == 2
    assert message in refused.err
    assert refused.err.count("\n") == 1
    assert not (tiny_run / "sensitivity").exists()
