"""Teachers by their path: an exported file teaches what its model folder does."""

import numpy as np
import pytest
import torch
from run_folder import epochs_of

import shards
from cpprune.config import RunConfig
from cpprune.distill.config import DistillConfig
from cpprune.distill.teaching import Teaching
from cpprune.export.onnx_model import OnnxModel

SETTINGS = ["--data.train_fraction", 0.25, "--train.batch_size", 8, "--train.epochs", 1]
SETTINGS += ["--model.widths", "[6, 8, 10]", "--optim.schedule", "constant"]
SETTINGS += ["--augment.mixup_alpha", 0.3, "--distill.label_weight", 0.1]


@pytest.fixture(scope="module")
def file(call, tiny_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    assert call("export", tiny_run / "model_last", "--out", path) == 0
    return path


@pytest.mark.slow
def test_an_exported_file_gives_the_logits_of_its_model(file, scenes, tiny_run):
    dataset = shards.open_dataset(scenes)
    rows = dataset.split("train").ids[::9]
    fetched = torch.from_numpy(dataset.fetch(rows))
    stored = []
    for path in (file, tiny_run / "model_last"):
        config = RunConfig(distill=DistillConfig(teachers=[str(path)]))
        teaching = Teaching(config, dataset, rows, torch.device("cpu"))
        (teacher,) = teaching._models.values()
        assert isinstance(teacher.model, OnnxModel) == (path == file)
        assert teaching.prepare(lambda: lambda places: fetched[places], lambda: None) == 1
        stored.append(teaching.stored[rows])
    assert stored[0].std(0).min() > 1e-3, "clips differ"
    np.testing.assert_allclose(stored[0], stored[1], atol=1e-4)


@pytest.mark.slow
def test_a_run_learns_from_an_exported_file(call, scenes, file, tiny_run, tmp_path):
    words = [*SETTINGS, "--data.path", scenes]
    teachers = {"file": file, "folder": tiny_run / "model_last", "other": tiny_run / "model"}
    for name, path in teachers.items():
        given = ["--distill.teachers", f"[{path}]", "--run", tmp_path / name]
        assert call("train", *words, *given) == 0
    losses = {name: epochs_of(tmp_path / name)[0]["train_loss"] for name in teachers}
    assert losses["file"] == pytest.approx(losses["folder"], rel=1e-4)
    assert losses["other"] != pytest.approx(losses["folder"], rel=1e-3)
