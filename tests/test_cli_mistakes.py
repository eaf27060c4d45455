"""What a user gets wrong costs one line that names it, and nothing that was there."""

import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

import cpprune


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever is written by mistake is written here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(cli):
    """Runs a command that has to end with status 2 and one line that says all of `names`."""

    def run(*arguments, names):
        outcome = cli(*arguments)
        lines = outcome.err.splitlines()
        assert outcome.status == 2, outcome.err
        assert len(lines) == 1, outcome.err
        assert re.match(r"cpprune: error( \(rank \w+\))?: ", lines[0])
        for name in names:
            assert str(name) in lines[0]
        assert outcome.out == ""
        return lines[0]

    return run


def contents(folder):
    """Return every file below a folder with the hash of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- commands and configuration -----------------------------------------------------------------------


def test_unknown_command(refused):
    refused("pruen", names=["pruen", "prune", "did you mean"])
    line = refused("xyzzy", names=["xyzzy", "evaluate"])
    assert "did you mean" not in line


def test_debug_shows_the_traceback(cli):
    from shards.errors import InputError

    with pytest.raises(InputError, match="nowhere"):
        cli("info", "nowhere", "--debug")


@pytest.mark.parametrize("command", ["train", "prune", "info"])
def test_unknown_key_on_the_command_line(refused, command, tmp_path):
    refused(command, "--optim.lrr", "1e-3", names=["optim.lrr", "did you mean optim.lr?"])
    refused(command, "--train.epoch=3", names=["train.epoch", "did you mean train.epochs?"])
    refused(command, "--learning_rat", "1", names=["learning_rat"])
    assert not any(tmp_path.iterdir())


def test_unknown_key_in_a_file(refused, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("prune: {ration: 0.4}\n")
    refused("prune", "--config", file, names=[file, "prune.ration", "did you mean prune.ratio?"])
    file.write_text("augment: {mix_style_p: 0.4}\n")
    refused("train", f"--config={file}", names=[file, "mix_style_p", "augment.mixstyle_p"])
    file.write_text("optim: 3\n")
    refused("train", "--config", file, names=[file, "optim"])


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("train.epochs", "many", "whole number"),
        ("train.epochs", "2.5", "whole number"),
        ("train.epochs", "0", "at least 1"),
        ("train.batch_size", "-3", "at least 1"),
        ("train.precision", "fp8", "bf16"),
        ("train.global_batch_norm", "perhaps", "true or false"),
        ("optim.lr", "fast", "a number"),
        ("optim.lr", "-1", "above 0"),
        ("optim.lr", "nan", "a number"),
        ("optim.name", "adm", "adam"),
        ("optim.schedule", "linear", "cosine"),
        ("model.widths", "[1, 2]", "three"),
        ("model.widths", "wide", "a list of whole numbers"),
        ("model.name", "cp_resnt", "cp_resnet"),
        ("features.preset", "seed512", "seed256"),
        ("data.split_fraction", "1.5", "at most 1"),
        ("data.resident", "gpu", "device"),
        ("augment.mixstyle_p", "2", "from 0 to 1"),
        ("prune.criterion", "magnitud", "magnitude"),
        ("prune.scope", "both", "local"),
        ("seed", "-1", "not be negative"),
        ("resume", "maybe", "auto"),
    ],
)
def test_a_value_that_is_not_allowed(refused, scenes, tmp_path, key, value, allowed):
    settings = ["--data.path", scenes, "--run", tmp_path / "run"]
    refused("train", *settings, f"--{key}={value}", names=[key, value, allowed])
    file = tmp_path / "mine.yaml"
    *above, last = key.split(".")
    text = f"{above[0]}:\n  {last}: {value}\n" if above else f"{last}: {value}\n"
    file.write_text(text)
    refused("train", *settings, "--config", file, names=[key, value, allowed])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ratio", ["1.0", "1.5", "0", "-0.2", "nan", "abc"])
def test_a_ratio_that_leaves_nothing_to_do_or_nothing_at_all(refused, tmp_path, ratio):
    refused("prune", "--prune.ratio", ratio, "--dry-run", names=["prune.ratio=", ratio])
    refused("prune", f"--prune.ratio={ratio}", names=["prune.ratio="])
    assert not any(tmp_path.iterdir())


def test_pruning_without_a_ratio(refused):
    refused("prune", names=["prune.ratio", "not set"])


def test_a_step_of_pruning_after_the_end(refused):
    settings = ["--prune.ratio", 0.4, "--prune.steps", 3, "--train.epochs", 2]
    refused("prune", *settings, names=["prune", "train.epochs"])


def test_a_configuration_file_that_is_none(refused, tmp_path):
    refused("train", "--config", "nowhere.yaml", names=["nowhere.yaml", "no such file"])
    refused("train", "--config", tmp_path, names=[tmp_path])
    file = tmp_path / "broken.yaml"
    file.write_text("optim: {lr: [1e-3\ntrain: }")
    refused("info", "--config", file, names=[file, "YAML"])
    file.write_text("just words")
    refused("info", "--config", file, names=[file])
    file.write_bytes(b"\xff\xfe\x00 nothing of the kind")
    refused("info", "--config", file, names=[file])


def test_arguments_of_the_other_commands(refused, tiny_run, scenes):
    model = tiny_run / "model"
    refused("evaluate", names=["model", "--data", "cpprune evaluate --help"])
    refused("evaluate", model, "--data", scenes, "--splitt", "val", names=["--splitt"])
    refused("predict", model, names=["FILE"])
    refused("import", "seed.pth", names=["--out"])
    refused("info", model, "more", names=["more"])
    refused("demo", "--clip", "many", names=["--clip"])
    refused("demo", "--clips", "10", names=["--clips", "200"])
    refused("doctor", "--jsn", names=["--jsn"])


# --- folders that are not there, or are something else ------------------------------------------------


def test_missing_dataset(refused, tiny_run, tmp_path):
    run = ["--run", tmp_path / "run"]
    refused("train", "--data.path", "nowhere", *run, names=["nowhere", "does not exist"])
    refused("train", "--data.path", "nowhere", *run, "--debug=false", names=[])
    refused("evaluate", tiny_run / "model", "--data", "nowhere", names=["nowhere"])
    refused("train", "--data.path", tiny_run, *run, names=[tiny_run, "dataset.json"])
    assert not (tmp_path / "run").exists()


def test_missing_model(refused, scenes, tiny_run, tmp_path):
    audio = tmp_path / "tone.wav"
    soundfile.write(audio, np.zeros(32_000), 32_000)
    refused("evaluate", "nowhere", "--data", scenes, names=["nowhere", "no such model folder"])
    refused("predict", "nowhere", audio, names=["nowhere"])
    refused("info", "nowhere", names=["nowhere"])
    settings = ["--data.path", scenes, "--run", tmp_path / "run", "--prune.ratio", 0.4]
    refused("prune", "--init", "nowhere", *settings, names=["nowhere"])
    refused("prune", "--init", "nowhere", *settings, "--dry-run", names=["nowhere"])
    refused("info", tiny_run, names=[tiny_run, "did you mean", tiny_run / "model"])
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made(refused, scenes, tiny, tmp_path):
    (tmp_path / "file").write_text("here is a file")
    settings = [*tiny, "--data.path", scenes, "--train.epochs", 1]
    outcome = ["train", *settings, "--run", tmp_path / "file"]
    refused(*outcome, names=[tmp_path / "file"])
    assert (tmp_path / "file").read_text() == "here is a file"


def test_predictions_into_a_folder_that_is_not_there(refused, tiny_run, scenes, tmp_path):
    file = tmp_path / "nowhere/predictions.csv"
    arguments = [tiny_run / "model", "--data", scenes, "--predictions", file]
    refused("evaluate", *arguments, names=["nowhere", "predictions.csv"])


# --- datasets that do not fit -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def build(call, noise_folder, tmp_path_factory):
    """Builds a dataset from a folder of noise, with more options."""
    folder = tmp_path_factory.mktemp("other")
    made = {}

    def make(name, *options, classes=("hum", "hiss")):
        if name not in made:
            audio = noise_folder(folder / f"{name}-audio", classes)
            arguments = ["--source", audio, "--out", folder / name, "--workers", 1, *options]
            assert call("shards", "build", "folder", *arguments) == 0
            made[name] = folder / name
        return made[name]

    return make


@pytest.fixture(scope="module")
def digits(call, tmp_path_factory):
    """A dataset of 60 and 20 made-up digits."""
    folder = tmp_path_factory.mktemp("digits")
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = np.array(data.shape, ">u4").tobytes()
            payload = bytes((0, 0, 8, data.ndim)) + sizes + data.tobytes()
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(payload))
    assert call("shards", "build", "mnist", "--source", folder, "--out", folder / "dataset") == 0
    return folder / "dataset"


def test_dataset_of_another_rate(refused, build, tiny, tiny_run, tmp_path):
    slow = build("slow", "--sample-rate", 16_000)
    run = ["--run", tmp_path / "run"]
    wanted = [slow, "16000", "32000", "--sample-rate 32000"]
    refused("train", *tiny, "--data.path", slow, *run, names=wanted)
    refused("evaluate", tiny_run / "model", "--data", slow, names=wanted)
    settings = ["--init", tiny_run / "model", "--prune.ratio", 0.4, "--data.path", slow, *run]
    refused("prune", *settings, names=wanted)
    assert not (tmp_path / "run").exists()


def test_dataset_with_clips_of_another_length(refused, build, tiny_run, tmp_path):
    short = build("short", "--seconds", 0.5)
    refused("evaluate", tiny_run / "model", "--data", short, names=[short, 16_000, 32_000])
    settings = ["--init", tiny_run / "model", "--data.path", short, "--run", tmp_path / "run"]
    refused("train", *settings, names=[short, 16_000, 32_000])
    assert not (tmp_path / "run").exists()


def test_clips_too_short_for_the_front_end(refused, build, tiny, tmp_path):
    tiny_clips = build("click", "--seconds", 0.02)
    settings = [*tiny, "--data.path", tiny_clips, "--run", tmp_path / "run"]
    refused("train", *settings, names=[tiny_clips, 640, "features.n_fft=2048", "--seconds"])


def test_clips_too_short_for_the_network(refused, build, tiny, tmp_path):
    shortish = build("tick", "--seconds", 0.08)
    settings = [*tiny, "--data.path", shortish, "--run", tmp_path / "run"]
    refused("train", *settings, names=[shortish])
    assert not (tmp_path / "run").exists()


def test_dataset_with_other_classes(refused, build, tiny_run, tmp_path):
    other = build("other")
    refused("evaluate", tiny_run / "model", "--data", other, names=[other, "classes", "airport"])
    settings = ["--init", tiny_run / "model", "--data.path", other, "--run", tmp_path / "run"]
    refused("train", *settings, names=[other, "classes"])
    assert not (tmp_path / "run").exists()


def test_images_and_audio_mixed_up(refused, cli, digits, scenes, tiny, tiny_run, tmp_path):
    run = tmp_path / "run"
    settings = [*tiny, "--run", run, "--train.epochs", 1, "--augment.mixstyle_p", 0]
    names = [digits, "features.preset=image"]
    refused("train", *settings, "--data.path", digits, names=names)
    image = [*settings, "--features.preset", "image"]
    refused("train", *image, "--data.path", scenes, names=[scenes, "features.preset", "seed256"])
    refused("evaluate", tiny_run / "model", "--data", digits, names=[digits])
    assert not run.exists()
    assert cli("train", *image, "--data.path", digits).status == 0
    refused("evaluate", run / "model", "--data", scenes, names=[scenes])
    audio = tmp_path / "tone.wav"
    soundfile.write(audio, np.zeros(32_000), 32_000)
    refused("predict", run / "model", audio, names=[audio, "images"])


def test_missing_split(refused, build, tiny, tiny_run, scenes, tmp_path):
    names = [scenes, "'dev'", "train, val, test"]
    refused("evaluate", tiny_run / "model", "--data", scenes, "--split", "dev", names=names)
    only = build("only", "--fractions", "0.8,0,0.2")
    settings = [*tiny, "--data.path", only, "--run", tmp_path / "run"]
    refused("train", *settings, names=[only, "'val'"])
    assert not (tmp_path / "run").exists()


def test_damaged_sample(refused, scenes, tiny, tiny_run, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(scenes, damaged)
    shard = next(damaged.glob("test-*.tar"))
    payload = bytearray(shard.read_bytes())
    payload[40_000] ^= 1
    shard.write_bytes(payload)
    names = [shard.name, "damaged", "cpprune shards verify"]
    refused("evaluate", tiny_run / "model", "--data", damaged, names=names)
    shutil.rmtree(damaged / ".build", ignore_errors=True)
    (damaged / "dataset.json").write_text("{}")
    refused("evaluate", tiny_run / "model", "--data", damaged, names=["dataset.json"])


# --- resuming, and starting from a model --------------------------------------------------------------


@pytest.fixture
def copy_of_run(tiny, tiny_run, scenes, tmp_path):
    """A finished run that may be damaged, and the command that made it."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_run, folder)
    command = ["train", *tiny, "--data.path", scenes, "--train.epochs", 4, "--run", folder]
    return folder, command


def test_resume_with_another_setting(refused, copy_of_run):
    folder, command = copy_of_run
    before = contents(folder)
    names = [folder, "optim.lr", "0.01", "0.005", "--resume never"]
    refused(*command, "--optim.lr", "5e-3", names=names)
    refused(*command, "--seed", 7, names=[folder, "seed: 0 then, 7 now"])
    refused(*command, "--features.preset", "seed128", names=["features.preset"])
    refused(*command, "--prune.ratio", 0.4, names=["prune.ratio"])
    assert contents(folder) == before


def test_resume_with_another_dataset(refused, cli, copy_of_run, scenes_source, tmp_path):
    folder, command = copy_of_run
    before = contents(folder)
    other = tmp_path / "other"
    source = ["--source", scenes_source, "--out", other, "--seed", 1, "--workers", 1]
    assert cli("shards", "build", "tau2022", *source).status == 0
    refused(*command, "--data.path", other, names=[folder, "data.path"])
    assert contents(folder) == before


def test_resume_from_another_start(refused, copy_of_run, tiny_run):
    folder, command = copy_of_run
    before = contents(folder)
    refused(*command, "--init", tiny_run / "model", names=[folder, "init"])
    assert contents(folder) == before


def test_nothing_to_resume(refused, scenes, tiny, tmp_path):
    run = tmp_path / "run"
    settings = [*tiny, "--data.path", scenes, "--run", run, "--resume", "must"]
    refused("train", *settings, names=[run, "no checkpoint"])
    assert not run.exists()


def test_a_run_without_its_checkpoints_is_not_overwritten(refused, copy_of_run):
    folder, command = copy_of_run
    shutil.rmtree(folder / "checkpoints")
    before = contents(folder)
    refused(*command, names=[folder, "--resume never"])
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("setting", "carried"),
    [
        (["--features.preset", "seed128"], "seed256"),
        (["--features.n_mels", "128"], "256"),
        (["--features.hop", "320"], "744"),
        (["--model.widths", "[4,4,4]"], "[6, 8, 10]"),
        (["--model.rho", "6"], "4"),
        (["--model.base_channels", "24"], "32"),
    ],
)
def test_a_setting_that_contradicts_the_model_to_start_from(
    refused, scenes, tiny_run, tmp_path, setting, carried
):
    start = ["--init", tiny_run / "model", "--data.path", scenes, "--run", tmp_path / "run"]
    names = [setting[0][2:], carried, tiny_run / "model"]
    refused("train", *start, *setting, names=names)
    file = tmp_path / "mine.yaml"
    above, last = setting[0][2:].split(".")
    file.write_text(f"{above}: {{{last}: {setting[1]}}}\n")
    refused("train", "--config", file, *start, names=names)
    refused("prune", *start, *setting, "--prune.ratio", 0.4, "--dry-run", names=names)
    assert not (tmp_path / "run").exists()


def truncated(name):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def removed(name):
    return lambda folder: (folder / name).unlink()


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def flipped(name):
    def damage(folder):
        payload = bytearray((folder / name).read_bytes())
        payload[-5] ^= 1
        (folder / name).write_bytes(payload)

    return damage


def edited(name, change):
    def damage(folder):
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return damage


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (truncated("state.json"), "state.json"),
        (text("state.json", "no JSON at all"), "state.json"),
        (text("state.json", "[]"), "state.json"),
        (text("state.json", '{"format": 99}'), "state.json"),
        (text("state.json", '{"format": 1}'), "state.json"),
        (removed("state.json"), "state.json"),
        (edited("state.json", lambda d: d["progress"].update(epochs=3)), "state.json"),
        (edited("state.json", lambda d: d.pop("optimizer")), ""),
        (truncated("network.safetensors"), "network.safetensors"),
        (removed("network.safetensors"), "network.safetensors"),
        (text("network.safetensors", ""), "network.safetensors"),
        (truncated("optimizer.safetensors"), "optimizer.safetensors"),
        (removed("optimizer.safetensors"), "optimizer.safetensors"),
        (flipped("network.safetensors"), "network.safetensors"),
        (flipped("optimizer.safetensors"), "optimizer.safetensors"),
    ],
)
def test_damaged_checkpoint(refused, tiny, stopped_run, scenes, tmp_path, damage, name):
    folder = tmp_path / "copy"
    shutil.copytree(stopped_run, folder)
    command = ["train", *tiny, "--data.path", scenes, "--train.epochs", 4, "--run", folder]
    last = max((folder / "checkpoints").iterdir())
    damage(last)
    before = contents(folder)
    refused(*command, names=[last / name])
    start = {"config.yaml", "environment.json"}
    after = contents(folder)
    assert {f: after[f] for f in after.keys() - start} == {
        f: before[f] for f in before.keys() - start
    }


def test_without_a_damaged_checkpoint_the_run_goes_on_from_the_one_before(
    refused, cli, tiny, stopped_run, scenes, tmp_path
):
    folder = tmp_path / "copy"
    shutil.copytree(stopped_run, folder)
    command = ["train", *tiny, "--data.path", scenes, "--train.epochs", 4, "--run", folder]
    earlier, last = sorted((folder / "checkpoints").iterdir())
    truncated("network.safetensors")(last)
    refused(*command, names=[f"delete {last} to go on from the one before"])
    shutil.rmtree(last)
    outcome = cli(*command)
    assert outcome.status == 0
    assert f"goes on from {earlier.name}" in outcome.err


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (removed("model.json"), "model.json"),
        (text("model.json", "{"), "model.json"),
        (text("model.json", "[1]"), "model.json"),
        (text("model.json", "{}"), "model.json"),
        (truncated("model.json"), "model.json"),
        (edited("model.json", lambda d: d.update(format=2)), "format"),
        (edited("model.json", lambda d: d.pop("classes")), "classes"),
        (edited("model.json", lambda d: d["classes"].pop()), "model.json"),
        (edited("model.json", lambda d: d.update(classes=None)), "model.json"),
        (edited("model.json", lambda d: d["widths"].update({"in_c.0": 7})), "model.json"),
        (edited("model.json", lambda d: d.update(widths=5)), "model.json"),
        (edited("model.json", lambda d: d["features"].update(colour=3)), "model.json"),
        (edited("model.json", lambda d: d["features"].update(n_mels="x")), "model.json"),
        (edited("model.json", lambda d: d.update(features=5)), "model.json"),
        (edited("model.json", lambda d: d.update(architecture="vgg")), "vgg"),
        (edited("model.json", lambda d: d.update(weights=[])), "model.json"),
        (edited("model.json", lambda d: d.update(clip_shape=None)), "model.json"),
        (removed("model.safetensors"), "model.safetensors"),
        (truncated("model.safetensors"), "model.safetensors"),
        (flipped("model.safetensors"), "model.safetensors"),
    ],
)
def test_broken_model(refused, tiny_run, scenes, tmp_path, damage, name):
    model = tmp_path / "model"
    shutil.copytree(tiny_run / "model", model)
    damage(model)
    refused("info", model, "--json", names=[model, name])
    refused("evaluate", model, "--data", scenes, "--json", names=[model, name])


# --- audio to name, weights to import -----------------------------------------------------------------


def test_audio_that_cannot_be_read(refused, tiny_run, tmp_path):
    model = tiny_run / "model"
    refused("predict", model, "nowhere.wav", names=["nowhere.wav", "no such file"])
    words = tmp_path / "words.wav"
    words.write_text("these are words")
    refused("predict", model, words, names=[words])
    words.write_bytes(b"")
    refused("predict", model, words, names=[words, "empty"])
    soundfile.write(words, np.zeros(32_000), 32_000)
    words.write_bytes(words.read_bytes()[:30_000])
    refused("predict", model, words, names=[words, "cut short"])
    soundfile.write(words, np.array([0, np.nan, 0]), 32_000, subtype="FLOAT")
    refused("predict", model, words, names=[words, "not finite"])
    refused("predict", model, tmp_path, names=[tmp_path])


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_weights_that_cannot_be_imported(refused, tmp_path):
    out = tmp_path / "model"
    file = tmp_path / "seed.pth"
    refused("import", file, "--out", out, names=[file, "no such file"])
    file.write_bytes(b"no weights")
    refused("import", file, "--out", out, names=[file])
    file.write_bytes(pickle.dumps({"state_dict": Trap()}))
    refused("import", file, "--out", out, names=[file])
    torch.save(Trap(), file)
    refused("import", file, "--out", out, names=[file])
    assert not (tmp_path / "trapped").exists()
    torch.save([1, 2], file)
    refused("import", file, "--out", out, names=[file, "state dict"])
    torch.save({"fc.weight": torch.zeros(3, 3)}, file)
    refused("import", file, "--out", out, names=[file, "in_c.0.weight", "fc.weight"])
    tensors = cpprune.build_model("cp_resnet", widths=[6, 8, 10]).state_dict()
    torch.save(tensors, file)
    refused("import", file, "--out", out, "--classes", "a,b", names=[file, "10", "2", "--classes"])
    refused("import", file, "--out", out, "--rho", 8, names=[file, "--rho 8"])
    refused("import", file, "--out", out, "--preset", "seed", names=["--preset", "seed256"])
    for name in ("stage2.block1.conv1.weight", "stage2.block1.bn1.running_var"):
        torch.save({key: t for key, t in tensors.items() if key != name}, file)
        refused("import", file, "--out", out, names=[file, name.removesuffix(".weight")])
    assert not out.exists()


# --- processes and precision --------------------------------------------------------------------------


def test_a_world_without_the_rest_of_the_environment(refused, scenes, tiny, tmp_path, monkeypatch):
    command = ["train", *tiny, "--data.path", scenes, "--run", tmp_path / "run"]
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(*command, names=["WORLD_SIZE is 2", "RANK", "MASTER_ADDR", "MASTER_PORT", "torchrun"])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29511")
    monkeypatch.setenv("LOCAL_RANK", "0")
    refused(*command, names=["WORLD_SIZE is 2", "RANK is not set"])
    monkeypatch.setenv("RANK", "5")
    refused(*command, names=["RANK=5", "WORLD_SIZE=2"])
    monkeypatch.setenv("RANK", "first")
    refused(*command, names=["RANK", "first"])
    monkeypatch.setenv("WORLD_SIZE", "two")
    refused(*command, names=["WORLD_SIZE", "two"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "0")
    refused(*command, names=["WORLD_SIZE"])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_process_of_two_does_not_wait_for_ever(scenes, tiny, tmp_path, free_port):
    world = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment = {**os.environ, **world, "MASTER_PORT": str(free_port())}
    environment["CPPRUNE_TIMEOUT_SECONDS"] = "3"
    command = [*tiny, "--data.path", scenes, "--run", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "cpprune.cli", "train", *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cpprune: error: the 2 processes of WORLD_SIZE did not all join")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here fp16 works")
def test_fp16_without_a_gpu(refused, scenes, tiny, tmp_path):
    settings = [*tiny, "--data.path", scenes, "--run", tmp_path / "run"]
    refused("train", *settings, "--train.precision", "fp16", names=["train.precision=fp16", "bf16"])
    assert not (tmp_path / "run").exists()


# --- building a dataset -------------------------------------------------------------------------------


def failed_build(cli, *options, names):
    outcome = cli("shards", "build", "folder", *options)
    assert outcome.status == 2
    errors = [line for line in outcome.err.splitlines() if line.startswith("cpprune: error: ")]
    assert errors == outcome.err.splitlines()[-1:]
    assert "Traceback" not in outcome.err
    for name in names:
        assert str(name) in errors[0]
    assert outcome.out == ""


def test_an_empty_class_folder(cli, noise_folder, tmp_path):
    source = noise_folder(tmp_path / "audio", files=3)
    (source / "void").mkdir()
    out = tmp_path / "dataset"
    failed_build(cli, "--source", source, "--out", out, names=[source / "void", "no audio"])
    assert not out.exists()


def test_audio_in_a_class_folder_that_cannot_be_read(cli, noise_folder, tmp_path):
    source = noise_folder(tmp_path / "audio", files=4)
    bad = source / "hum/2.wav"
    bad.write_text("these are words")
    out = tmp_path / "dataset"
    options = ["--source", source, "--out", out, "--workers", 1]
    failed_build(cli, *options, names=["hum/2.wav", "--on-error skip"])
    assert not out.exists()
    good = cli("shards", "build", "folder", *options, "--on-error", "skip")
    assert good.status == 0
    assert "hum/2.wav" in (out / "rejected.csv").read_text()


def test_a_source_that_is_not_there(cli, tmp_path):
    options = ["--source", "nowhere", "--out", tmp_path / "dataset"]
    failed_build(cli, *options, names=["nowhere"])
    assert not (tmp_path / "dataset").exists()
