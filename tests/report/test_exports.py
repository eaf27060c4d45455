"""What a run's model ships as: the figures of exported models, computed here once more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from pages import Page
from scipy.stats import binomtest

import cpprune
import shards

Pages = Callable[..., Page]
LABEL = "Exported models"


@pytest.fixture(scope="session")
def onnx_file(call: Callable[..., int], tiny_run: Path, tmp_path_factory: Any) -> Path:
    """The tiny run's model as an ONNX file. Tests must not change it."""
    path: Path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    assert call("export", tiny_run / "model", "--out", path) == 0
    return path


@pytest.fixture
def run(tiny_run: Path, copied: Callable[..., Path]) -> Path:
    """A finished run that exported models may be put into."""
    return copied(tiny_run, "shipped")


def c_folder(run: Path, name: str, check: Any = None, **changes: Any) -> Path:
    """Write what a folder of C says of itself, and no C."""
    folder = run / name
    folder.mkdir()
    weights = json.loads((run / "model/model.json").read_text())["weights"]["sha256"]
    about = {"target": "c", "cpprune_version": "0", "weights_sha256": weights, "precision": "int8"}
    about |= {"bytes": {"network": 1200, "front_end": 345, "ram": 67_890}, "compiled": None}
    (folder / "metadata.json").write_text(json.dumps(about | changes))
    if check:
        (folder / "check.json").write_text(json.dumps(check))
    return folder


def rows_of(page: Page) -> dict[str, dict[str, str]]:
    return {row["file"]: row for row in page.records(LABEL)}


def shown(right: int, clips: int) -> str:
    low, high = binomtest(right, clips).proportion_ci(0.95, "wilson")
    return f"{right / clips:.4f} ({low:.3f} to {high:.3f})"


@pytest.mark.slow
def test_a_file_is_measured_on_the_clips_of_the_report(
    run: Path, onnx_file: Path, scenes: Path, page_of: Pages
) -> None:
    shutil.copy(onnx_file, run / "tiny.onnx")
    page = page_of(run, "--split", "test")
    split = shards.open_dataset(scenes).split("test")
    clips = split.fetch(range(len(split)))
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"waveform": np.float32(clips / 32768)})
    found = logits.argmax(1)
    expected = cpprune.load(run / "model")(split_tensor(clips)).argmax(1).numpy()
    right = int((found == split.labels).sum())
    rows = rows_of(page)
    assert list(rows) == ["model", "tiny.onnx"]
    row = rows["tiny.onnx"]
    assert (row["as"], row["RAM"]) == ("onnx fp32", "–")
    assert row["bytes"] == f"{onnx_file.stat().st_size:,}"
    assert row["accuracy (95 %)"] == shown(right, len(split))
    assert row["of the model"] == f"{(expected == split.labels).mean():.4f}"
    assert row["same class"] == f"{(found == expected).mean():.1%}"
    assert row["measured on"] == rows["model"]["measured on"] == "50 clips of test"
    assert float(row["ms"]) > 0
    size = (run / "model/model.safetensors").stat().st_size
    assert (rows["model"]["as"], rows["model"]["bytes"]) == ("torch fp32", f"{size:,}")


def split_tensor(clips: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(clips)


CHECK = {
    "split": "train",
    "clips": 128,
    "largest_difference": 0.5,
    "agreement": 0.75,
    "accuracy": {
        "model": {"accuracy": 0.5, "low": 0.4, "high": 0.6},
        "exported": {"accuracy": 0.25, "low": 0.125, "high": 0.375},
    },
    "latency_ms": {"model": 3.5, "exported": 7.25},
}


def test_a_folder_of_code_has_the_figures_of_its_export(run: Path, page_of: Pages) -> None:
    """There is no code in the folders: nothing can be compiled or run."""
    c_folder(run, "checked", CHECK, compiled={"flash": 2222, "compiler": "cc", "machine": ""})
    c_folder(run, "unchecked")
    page = page_of(run)
    rows = rows_of(page)
    assert list(rows["checked"].values()) == [
        *("checked", "c int8", "2,222", "67,890", "0.2500 (0.125 to 0.375)", "0.5000", "75.0%"),
        *("7.25", "3.50", "128 clips of train"),
    ]
    assert list(rows["unchecked"].values()) == [
        *("unchecked", "c int8", "1,545", "67,890", "–", "–", "–", "–", "–", "–"),
    ]
    assert "those of cpprune export --check" in page.text


def test_what_cannot_be_shown_is_named(
    run: Path, onnx_file: Path, page_of: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "damaged.onnx").write_bytes(onnx_file.read_bytes()[:-10])
    c_folder(run, "stale", weights_sha256="0" * 64)
    c_folder(run, "odd", bytes={"ram": 3})
    shutil.copytree(run / "model", run / "mine")  # no exported model
    page = page_of(run)
    assert LABEL not in page.tables
    assert "damaged.onnx is left out: " in page.text
    assert "stale is left out: it was made from another model than the run has now" in page.text
    assert "odd is left out: " in page.text
    assert "does not say how large it is" in page.text
    assert "mine is left out" not in page.text
    assert f"cpprune export {run}/model --out {run}/shipped.onnx" in page.text
    shutil.copy(onnx_file, run / "good.onnx")
    monkeypatch.setattr("cpprune.export.target.find_spec", lambda name: None)
    assert "pip install 'cpprune[export]'" in page_of(run).text


def test_without_the_data_sizes_are_left(
    tiny_run: Path, onnx_file: Path, copied: Any, page_of: Pages
) -> None:
    lost = copied(tiny_run, "lost", {"data.path": "no/such/data"})
    shutil.copy(onnx_file, lost / "tiny.onnx")
    row = rows_of(page_of(lost))["tiny.onnx"]
    assert row["bytes"] == f"{onnx_file.stat().st_size:,}"
    assert row["accuracy (95 %)"] == row["same class"] == row["ms"] == "–"


def test_exported_models_that_are_named(
    run: Path, onnx_file: Path, pruned_run: Path, page_of: Pages, refused: Any, tmp_path: Path
) -> None:
    shutil.copy(onnx_file, run / "tiny.onnx")
    page = page_of(run, "--exports", onnx_file, run / "tiny.onnx", c_folder(run, "c"))
    assert sorted(page.column(LABEL, "file")) == ["c", "model", "tiny.onnx", "tiny.onnx"]
    command = ("report", pruned_run, "--out", tmp_path / "other.html", "--exports")
    refused(*command, onnx_file, names=[f"--exports {onnx_file}", pruned_run, "not made from"])
    refused(*command, tmp_path / "no.onnx", names=["no.onnx", "no such file", "cpprune export"])
    refused(*command, pruned_run, names=[pruned_run, "name what cpprune export wrote"])
    assert not (tmp_path / "other.html").exists()
