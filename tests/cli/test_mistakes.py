"""What a user gets wrong costs one line that names it, and nothing that was there."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

import cpprune

pytestmark = pytest.mark.usefixtures("elsewhere")


# --- commands and configuration -----------------------------------------------------------------------


def test_unknown_command(refused):
    refused("pruen", names=["pruen", "prune", "did you mean"])
    line = refused("xyzzy", names=["xyzzy", "evaluate"])
    assert "did you mean" not in line


def test_debug_shows_the_traceback(cli):
    from shards.errors import UserError

    with pytest.raises(UserError, match="nowhere"):
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
        ("features.preset", "seed512", "cpjku22_256"),
        ("data.train_fraction", "1.5", "at most 1"),
        ("data.in_memory", "gpu", "device"),
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


def test_a_group_of_keys_is_no_key(refused, tmp_path):
    """A file would be read in its place, and a named pipe be waited for."""
    os.mkfifo(tmp_path / "pipe")
    names = ["data stands for several keys", "data.path"]
    refused("train", f"--data={tmp_path}/pipe", "--run", tmp_path / "run", names=names)
    refused("train", "--data", tmp_path / "pipe", "--run", tmp_path / "run", names=names)


def test_folders_above_an_output_are_made(cli, tiny_run, scenes, tmp_path):
    file = tmp_path / "new/er/predictions.csv"
    arguments = [tiny_run / "model", "--data", scenes, "--predictions", file]
    assert cli("evaluate", *arguments).status == 0
    assert file.read_text().startswith("filename\tscene_label\t")


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
    refused("import", file, "--out", out, "--preset", "seed", names=["--preset", "cpjku22_256"])
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
        [sys.executable, "-m", "cpprune", "train", *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
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
