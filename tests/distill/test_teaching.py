"""Runs with teachers: stored, on the fly and uncut; stopped and resumed; refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from marks import slow
from run_folder import assert_same_run, epochs_of, equal, tensors, weights_of

import shards
from cpprune.config import RunConfig
from cpprune.distill.config import DistillConfig
from cpprune.distill.teaching import Teaching
from cpprune.models import artifact

SETTINGS = ["--data.train_fraction", 0.25, "--train.batch_size", 8, "--train.epochs", 3]
SETTINGS += ["--model.widths", "[6, 8, 10]", "--optim.schedule", "constant"]
SETTINGS += ["--augment.mixup_alpha", 0.3, "--augment.roll", 400, "--augment.freq_mask", 20]
PRUNED = ["--prune.ratio", 0.5, "--prune.steps", 1, "--prune.start_epoch", 1]


@pytest.fixture(scope="module")
def settings(scenes, tiny_run):
    return [*SETTINGS, "--data.path", scenes, "--distill.teachers", f"[{tiny_run / 'model'}]"]


@pytest.fixture(scope="module")
def stored(call, scenes, tiny_run, tmp_path_factory):
    """The teacher's logits as a file."""
    path = tmp_path_factory.mktemp("logits") / "teacher.npz"
    assert call("logits", tiny_run / "model", "--data", scenes, "--out", path) == 0
    return path


@pytest.fixture(scope="module")
def arrays(stored):
    with np.load(stored) as file:
        return dict(file)


def test_the_file_holds_the_logits_by_key(arrays, scenes, tiny_run):
    split = shards.open_dataset(scenes).split("train")
    assert arrays["keys"].tolist() == split.keys
    assert arrays["classes"].tolist() == list(split.dataset.classes)
    clips = torch.from_numpy(split.fetch([0, 77]))
    alone = artifact.load(tiny_run / "model").logits(clips)
    np.testing.assert_allclose(arrays["logits"][[0, 77]], alone, atol=1e-5)


@pytest.mark.slow
def test_a_file_in_any_order_teaches_what_its_models_do(
    call, settings, arrays, scenes, tmp_path, stored
):
    assert call("train", *settings, "--run", tmp_path / "asked") == 0
    order = np.random.default_rng(0).permutation(len(arrays["keys"]))
    columns = [3, 1, 2, 0, *range(4, len(arrays["classes"]))]
    elsewhere = tmp_path / "elsewhere.npz"
    np.savez(
        elsewhere,
        keys=arrays["keys"][order],
        logits=arrays["logits"][order][:, columns],
        classes=arrays["classes"][columns],
    )
    for name, path in {"file": stored, "reordered": elsewhere}.items():
        words = [*SETTINGS, "--data.path", scenes, "--distill.teachers", f"[{path}]"]
        assert call("train", *words, "--run", tmp_path / name) == 0
    assert call("train", *SETTINGS, "--data.path", scenes, "--run", tmp_path / "none") == 0
    asked, file, other, none = (
        [line["train_loss"] for line in epochs_of(tmp_path / name)]
        for name in ("asked", "file", "reordered", "none")
    )
    assert asked == pytest.approx(file, rel=1e-4)
    assert file == other
    assert equal(weights_of(tmp_path / "file"), weights_of(tmp_path / "reordered"))
    assert abs(none[0] - file[0]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("clean"), "on_the_fly"])
@pytest.mark.parametrize("more", [slow([]), [*PRUNED, "uncut"]], ids=["plain", "through the cut"])
def test_a_stopped_run_ends_with_the_same_bits(
    call, cli, settings, stop_at, tmp_path, mode, more, tiny_run
):
    words = [*settings, "--distill.mode", mode, "--train.checkpoint_steps", 1]
    words += ["--train.ema_decay", 0.9, "--train.micro_batch_size", 5]
    if more:
        words += [*PRUNED, "--distill.teachers", f"[{tiny_run / 'model'}, uncut]"]
        words += ["--distill.weights", "[1, 2]"]
    assert call("train", *words, "--run", tmp_path / "whole") == 0
    for number in [4, 5, 6]:
        with stop_at(number):
            assert cli("train", *words, "--run", tmp_path / "run").status == 130
    assert cli("train", *words, "--run", tmp_path / "run").status == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    if more:
        kept = [tensors(tmp_path / run / "uncut/model.safetensors") for run in ("run", "whole")]
        assert equal(*kept)


def test_uncut_is_the_network_before_the_cut(call, scenes, tmp_path):
    words = [*SETTINGS, *PRUNED, "--data.path", scenes, "--train.keep_checkpoints", 9]
    words += ["--distill.teachers", "[uncut]", "--run", tmp_path / "run"]
    assert call("prune", *words) == 0
    before = tensors(tmp_path / "run/checkpoints/step-00000004/network.safetensors")
    assert equal(before, tensors(tmp_path / "run/uncut/model.safetensors"))


def test_a_lost_uncut_network_is_one_line(call, refused, scenes, tmp_path):
    words = [*SETTINGS, *PRUNED, "--data.path", scenes, "--run", tmp_path / "run"]
    words += ["--distill.teachers", "[uncut]"]
    assert call("prune", *words) == 0
    shutil.rmtree(tmp_path / "run/uncut")
    refused("prune", *words, names=["before its first pruning step", "--resume never"])


def test_a_teacher_with_another_front_end_sees_its_own_features(call, scenes, tiny_run, tmp_path):
    """On clips that nothing but the front ends tells apart."""
    words = [*SETTINGS, "--data.path", scenes, "--distill.teachers", f"[{tiny_run / 'model'}]"]
    words += ["--features.n_mels", 64, "--augment.mixstyle_p", 0, "--augment.roll", 0]
    words += ["--augment.mixup_alpha", 0, "--augment.freq_mask", 0, "--train.epochs", 1]
    words += ["--augment.band_jitter", "false"]
    for mode in ("clean", "on_the_fly"):
        run = tmp_path / mode
        assert call("train", *words, "--distill.mode", mode, "--run", run) == 0
    losses = [epochs_of(tmp_path / mode)[0]["train_loss"] for mode in ("clean", "on_the_fly")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def spoilt(arrays, change):
    made = {name: value.copy() for name, value in arrays.items()}
    change(made)
    return made


def lacking(made):
    made["keys"], made["logits"] = made["keys"][:-1], made["logits"][:-1]


def of_other_data(made):
    made["dataset"] = np.array("0" * 64)


def of_other_classes(made):
    made["classes"][0] = "moon"


def classes_in_one_text(made):
    made["classes"] = np.array(", ".join(made["classes"]))


def classes_by_number(made):
    made["classes"] = np.arange(len(made["classes"]))


def bytes_of_the_dataset(made):
    made["dataset"] = made["dataset"].astype(np.bytes_)


def keys_in_one_text(made):
    made["keys"] = np.array(made["keys"][0])


def infinite(made):
    made["logits"][:] = np.inf


def twice(made):
    made["keys"][1] = made["keys"][0]


def pickled(made):
    made["keys"] = made["keys"].astype(object)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lacking, "lacks 1 of 128"),
        (of_other_data, "another dataset"),
        (of_other_classes, "moon"),
        (classes_in_one_text, "classes must be text [K]"),
        (classes_by_number, "classes must be text [K]"),
        (bytes_of_the_dataset, "dataset must be text, but is"),
        (keys_in_one_text, "keys must be text [N]"),
        (infinite, "not finite"),
        (twice, "twice"),
        (pickled, "not a .npz file"),
        (lambda made: made.pop("keys"), "keys and logits"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(refused, arrays, scenes, tmp_path, change, text):
    path = tmp_path / "wrong.npz"
    np.savez(path, **spoilt(arrays, change))
    words = [*SETTINGS, "--data.train_fraction", 1, "--data.path", scenes]
    run = tmp_path / "run"
    refused("train", *words, "--distill.teachers", f"[{path}]", "--run", run, names=[path, text])
    assert not run.exists()


def changed_copy(model, folder, **values):
    shutil.copytree(model, folder)
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, **values}))
    return folder


def test_teachers_that_do_not_fit_are_refused(refused, scenes, tiny_run, tmp_path):
    def check(*words, names):
        line = ["train", *SETTINGS, "--data.path", scenes, "--run", tmp_path / "run", *words]
        refused(*line, names=names)

    classes = json.loads((tiny_run / "model/model.json").read_text())["classes"]
    other = changed_copy(tiny_run / "model", tmp_path / "classes", classes=["x", *classes[1:]])
    longer = changed_copy(tiny_run / "model", tmp_path / "longer", clip_shape=[64000])
    check("--distill.teachers", f"[{other}]", names=[other, "other classes"])
    check("--distill.teachers", f"[{longer}]", names=[longer, "64000"])
    check("--distill.teachers", "[nowhere]", names=["nowhere"])
    check("--distill.teachers", "[uncut]", names=["uncut", "prune.ratio"])
    check("--distill.teachers", "3", names=["distill.teachers"])
    check("--distill.weights", "[1]", names=["distill.weights"])
    check("--distill.weights", "[a]", names=["distill.weights", "list of numbers"])
    check("--distill.temperature", 0, names=["distill.temperature"])
    check("--distill.label_weight", 2, names=["distill.label_weight"])
    given = ["--distill.teachers", "[a.onnx]", "--distill.mode", "on_the_fly"]
    check(*given, names=["a.onnx", "clean"])


def test_another_teacher_is_another_run(call, refused, settings, tiny_run, tmp_path):
    run = tmp_path / "run"
    assert call("train", *settings, "--train.epochs", 1, "--run", run) == 0
    moved = shutil.copytree(tiny_run / "model", tmp_path / "moved")
    words = [*settings, "--train.epochs", 1, "--run", run]
    assert call("train", *words, "--distill.teachers", f"[{moved}]") == 0
    last = tiny_run / "model_last"
    refused("train", *words, "--distill.teachers", f"[{last}]", names=["distill.teachers"])


def test_an_ensemble_of_one_is_the_model(cli, scenes, tiny_run):
    model = tiny_run / "model"
    alone = cli("evaluate", model, "--data", scenes, "--json").json
    twice = cli("ensemble", model, model, "--weights", "2,1", "--data", scenes, "--json").json
    assert twice["log_loss"] == pytest.approx(alone["log_loss"], abs=1e-6)
    assert twice["confusion"] == alone["confusion"]
    for cost in ("parameters", "macs", "operations"):
        assert twice[cost] == 2 * alone[cost]
    printed = cli("ensemble", model, model, "--data", scenes)
    assert f"{twice['parameters']:,} parameters, {twice['macs']:,} MACs" in printed.out


def test_every_clip_has_the_logits_of_its_own_key(arrays, stored, scenes, tmp_path):
    dataset = shards.open_dataset(scenes)
    config = RunConfig(run=str(tmp_path), distill=DistillConfig(teachers=[str(stored)]))
    rows = dataset.split("train").ids[5:50]
    teaching = Teaching(config, dataset, rows, torch.device("cpu"))
    teaching.prepare(lambda: pytest.fail("a file is not asked"), lambda: None)
    own, partners = rows[[7, 3, 30]], rows[[3, 8, 7]]
    found = teaching.inputs(own, partners)
    by_key = dict(zip(arrays["keys"].tolist(), arrays["logits"], strict=True))
    for name, ids in (("teacher_logits", own), ("partner_teacher_logits", partners)):
        wanted = np.stack([by_key[dataset.key(int(row))] for row in ids])
        np.testing.assert_array_equal(found[name], wanted)
