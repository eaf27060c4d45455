"""Soups: the average in float64, batch statistics by hand, the greedy choice, and what is refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_folder import tensors, weights_of

import shards
from cpprune.models import artifact
from cpprune.training.soup import _check_fit, load_ingredients, recompute_statistics
from shards.errors import UserError
from shards.order import permutation

SHORT = ["--data.train_fraction", 0.25, "--train.batch_size", 8, "--train.epochs", 1]
SHORT += ["--optim.schedule", "constant"]
STATISTICS = ("running_mean", "running_var")


@pytest.fixture(scope="module")
def tuned(call, scenes, tiny_run, tmp_path_factory):
    """Two models, fine-tuned from one."""
    folder = tmp_path_factory.mktemp("tuned")
    words = [*SHORT, "--init", tiny_run / "model", "--data.path", scenes]
    for name, lr in (("a", 1e-3), ("b", 3e-3)):
        assert call("train", *words, "--optim.lr", lr, "--run", folder / name) == 0
    return [str(folder / name / "model") for name in "ab"]


@pytest.fixture
def soup(cli, scenes, tmp_path):
    """Makes one of models; returns what --json prints, and all that was printed."""

    def make(*words):
        out = tmp_path / "soup"
        outcome = cli("soup", *words, "--data", scenes, "--out", out, "--json")
        assert outcome.status == 0, outcome.err
        return outcome.json, outcome

    return make


@pytest.mark.slow
def test_weights_are_the_mean_and_statistics_those_of_the_mean(
    soup, cli, tuned, scenes, scenes_source, tmp_path
):
    found, outcome = soup(*tuned, tuned[0])
    assert found["soup"] == [*tuned, tuned[0]]
    assert "warning" not in outcome.err
    made = weights_of(tmp_path, "soup")
    a, b = (tensors(f"{path}/model.safetensors") for path in tuned)
    learned = [name for name in made if not name.endswith((*STATISTICS, "tracked"))]
    assert len(learned) > 20
    for name in learned:
        wanted = (2 * a[name].numpy().astype(np.float64) + b[name].numpy().astype(np.float64)) / 3
        np.testing.assert_allclose(made[name], wanted, rtol=1e-6, atol=1e-12)
    first = next(name for name in made if name.endswith("running_mean"))
    assert (made[first] - (2 * a[first] + b[first]) / 3).abs().max() > 1e-4, "not averaged"
    evaluated = cli("evaluate", tmp_path / "soup", "--data", scenes, "--split", "val", "--json")
    assert evaluated.json["log_loss"] == pytest.approx(found["val"]["log_loss"], rel=1e-6)
    about = json.loads((tmp_path / "soup/model.json").read_text())
    assert about["metrics"]["val"] == found["val"]
    assert [made["run"] for made in about["provenance"]["soup"]] == ["a", "b", "a"]
    for one in found["alone"][:2]:
        alone = cli("evaluate", one["model"], "--data", scenes, "--split", "val", "--json").json
        assert one["val"]["macro_accuracy"] == alone["macro_accuracy"]
    recording = next(scenes_source.glob("audio/*.wav"))
    assert cli("predict", tmp_path / "soup", recording).status == 0
    assert cli("export", tmp_path / "soup", "--out", tmp_path / "soup.onnx").status == 0


@pytest.mark.parametrize(("clips", "sizes"), [(None, [50, 50]), (7, [7]), (120, [50, 50])])
def test_statistics_are_the_mean_over_batches(monkeypatch, scenes, tiny_run, clips, sizes):
    """Of what the first normalisation sees, in float64. A smaller last batch is left out."""
    monkeypatch.setattr("cpprune.training.soup.CHUNK", 50)
    model = artifact.load(tiny_run / "model")
    dataset = shards.open_dataset(scenes)
    split = dataset.split("train")
    assert len(split) == 128
    convolution, normalisation = model.network.in_c[0], model.network.in_c[1]
    means, variances, begin = [], [], 0
    for size in sizes:
        own = permutation(128, 0)[begin : begin + size]
        begin += size
        x = model.features(torch.from_numpy(split.fetch(own)))
        with torch.no_grad():
            y = convolution.double()(x.double())
        means.append(y.mean((0, 2, 3)))
        variances.append(y.var((0, 2, 3)))
    convolution.float()
    recompute_statistics(model, dataset, clips, torch.device("cpu"))
    mean, variance = torch.stack(means).mean(0), torch.stack(variances).mean(0)
    np.testing.assert_allclose(normalisation.running_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normalisation.running_var, variance, rtol=1e-4)
    assert not model.network.training


def test_without_training_clips_there_are_no_statistics(scenes, tiny_run):
    split = shards.open_dataset(scenes).split("train")
    empty = SimpleNamespace(path="data", split=lambda name: split.take(np.arange(0)))
    with pytest.raises(UserError, match="data: has no training clips"):
        recompute_statistics(artifact.load(tiny_run / "model"), empty, None, torch.device("cpu"))


def test_greedy_takes_what_does_not_harm(soup, tuned, monkeypatch, tmp_path):
    """Where accuracy is how near one weight is to 2."""

    def weight(model):
        return model.network.in_c[0].weight.detach()[0, 0, 0]

    def measured(model, *_):
        near = 1 - (float(weight(model)[0]) - 2) ** 2 / 100
        return dict.fromkeys(("macro_accuracy", "accuracy", "log_loss", "clips"), near), None

    paths = {}
    for value in (1, 3.5, 9, 2.75):
        model = artifact.load(tuned[0])
        weight(model)[0] = value
        paths[value] = str(tmp_path / f"{value}/model")
        artifact.save(model, tmp_path / f"{value}/model")
    monkeypatch.setattr("cpprune.training.soup.evaluate_model", measured)
    found, outcome = soup(*paths.values(), "--greedy")
    # 2.75 is best; with 1 it is 1.875; with 3.5, then, 2.42; with 9 instead, 4.25.
    assert found["soup"] == [paths[2.75], paths[1]]
    assert outcome.err.count("left out") == 2
    assert outcome.err.count("kept") == 1
    assert weights_of(tmp_path, "soup")["in_c.0.weight"][0, 0, 0, 0] == 1.875
    assert found["val"]["macro_accuracy"] == pytest.approx(1 - 0.125**2 / 100)
    assert soup(*paths.values())[0]["soup"] == list(paths.values())
    assert weights_of(tmp_path, "soup")["in_c.0.weight"][0, 0, 0, 0] == 4.0625


def test_a_greedy_soup_of_equals_takes_them_all(soup, tuned, monkeypatch):
    """At least as accurate is enough."""
    measured = dict.fromkeys(("macro_accuracy", "accuracy", "log_loss", "clips"), 0.5)
    monkeypatch.setattr("cpprune.training.soup.evaluate_model", lambda *_: (measured, None))
    assert soup(*tuned, "--greedy")[0]["soup"] == tuned


@pytest.fixture(scope="module")
def pruned(call, scenes, tiny_run, tmp_path_factory):
    """Two models of equal widths, pruned to different channels."""
    folder = tmp_path_factory.mktemp("pruned")
    words = [*SHORT, "--init", tiny_run / "model", "--data.path", scenes, "--prune.ratio", 0.5]
    for criterion in ("magnitude", "random"):
        run = folder / criterion
        assert call("prune", *words, "--prune.criterion", criterion, "--run", run) == 0
    return folder


def test_what_does_not_fit_is_named(refused, cli, call, tuned, pruned, scenes, tiny_run, tmp_path):
    out = tmp_path / "soup"

    def check(*models, names, to=out):
        refused("soup", *models, "--data", scenes, "--out", to, names=names)
        assert not out.exists()

    one, other = (pruned / name / "model" for name in ("magnitude", "random"))
    check(tuned[0], one, names=[one, "widths", "in_c.0: 3, not 6", tuned[0]])
    check(one, other, names=[other, "channels left by pruning", "in pruning step 1"])
    changed = shutil.copytree(tuned[0], tmp_path / "run/changed")
    about = json.loads((changed / "model.json").read_text())
    for key, value in (("classes", about["classes"][::-1]), ("clip_shape", [64000])):
        (changed / "model.json").write_text(json.dumps({**about, key: value}))
        check(tuned[0], changed, names=[changed, key.split("_")[0]])
    features = {**about["features"], "window": 1024}
    (changed / "model.json").write_text(json.dumps({**about, "features": features}))
    check(tuned[0], changed, names=[changed, "front end", "window: 1024, not 2048"])
    check(tuned[0], "nowhere", names=["nowhere"])
    check(tuned[0], tmp_path / "x.onnx", names=["x.onnx"])
    check(*tuned, "--clips", 0, names=["--clips 0"])
    check(*tuned, names=["--out", "one of the models"], to=tuned[0])
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "notes.txt").touch()
    check(*tuned, names=["--out", "not a model"], to=theirs)


def test_a_setting_that_only_one_names(tuned):
    """Even if it names nothing."""
    first, other = load_ingredients(tuned, torch.device("cpu"))
    other.model.config = {**other.model.config, "depth": None}
    for pair, text in (((first, other), "None, not absent"), ((other, first), "absent, not None")):
        with pytest.raises(UserError, match=rf"settings of the network .*\(depth: {text}\)"):
            _check_fit(*pair)


def test_doubts_are_said(soup, call, tuned, pruned, scenes, tiny_run, tmp_path):
    # What was fine-tuned may be averaged with what it was fine-tuned from.
    for words in ((tuned[0], tiny_run / "model"), (tiny_run / "model", *tuned)):
        assert "warning" not in soup(*words)[1].err
    words = [*SHORT, "--model.widths", "[6, 8, 10]", "--data.path", scenes, "--seed", 7]
    assert call("train", *words, "--run", tmp_path / "apart") == 0
    for other in (tuned[0], tiny_run / "model"):
        _, outcome = soup(other, tmp_path / "apart/model")
        assert "did not start from the same weights" in outcome.err
    moved = shutil.copytree(pruned / "random/model", tmp_path / "moved")
    _, outcome = soup(moved, pruned / "magnitude/model")
    assert "nobody knows whether the same channels are left" in outcome.err
    assert "did not start" not in outcome.err
