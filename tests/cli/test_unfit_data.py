"""A dataset that does not fit is refused in one line, and so is a source that none can be built from."""

import shutil

import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.usefixtures("elsewhere")


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
def digits(call, write_mnist, tmp_path_factory):
    """A dataset of 60 and 20 made-up digits."""
    folder = tmp_path_factory.mktemp("digits")
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_mnist(folder, part, images, labels)
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
    refused(
        "train", *image, "--data.path", scenes, names=[scenes, "features.preset", "cpjku22_256"]
    )
    refused("evaluate", tiny_run / "model", "--data", digits, names=[digits])
    assert not run.exists()
    assert cli("train", *image, "--data.path", digits).status == 0
    refused("evaluate", run / "model", "--data", scenes, names=[scenes])
    audio = tmp_path / "tone.wav"
    soundfile.write(audio, np.zeros(32_000), 32_000)
    refused("predict", run / "model", audio, names=[run / "model", "images"])


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
