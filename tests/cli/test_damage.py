"""What is damaged or contradicts is neither gone on from nor started from: one line, and no change."""

import json
import shutil

import pytest
from marks import slow
from run_folder import assert_same_run

pytestmark = pytest.mark.usefixtures("elsewhere")


# --- resuming, and starting from a model --------------------------------------------------------------


@pytest.fixture
def copied(tiny, scenes, tmp_path):
    """Copies the folder of a run: returns one that may be damaged, and the command that made it."""

    def copy(run):
        folder = tmp_path / "copy"
        shutil.copytree(run, folder)
        command = ["train", *tiny, "--data.path", scenes, "--train.epochs", 4, "--run", folder]
        return folder, command

    return copy


@pytest.fixture
def copy_of_run(copied, tiny_run):
    """A finished run."""
    return copied(tiny_run)


@pytest.fixture
def copy_of_stopped_run(copied, stopped_run):
    """Its twin, stopped in the third epoch."""
    return copied(stopped_run)


def test_resume_with_another_setting(refused, hashes, copy_of_run):
    folder, command = copy_of_run
    before = hashes(folder)
    names = [folder, "optim.lr", "0.01", "0.005", "--resume never"]
    refused(*command, "--optim.lr", "5e-3", names=names)
    refused(*command, "--seed", 7, names=[folder, "seed: 0 then, 7 now"])
    refused(*command, "--features.preset", "passt_128", names=["features.preset"])
    refused(*command, "--prune.ratio", 0.4, names=["prune.ratio"])
    assert hashes(folder) == before


def test_resume_with_another_dataset(refused, hashes, cli, copy_of_run, scenes_source, tmp_path):
    folder, command = copy_of_run
    before = hashes(folder)
    other = tmp_path / "other"
    source = ["--source", scenes_source, "--out", other, "--seed", 1, "--workers", 1]
    assert cli("shards", "build", "tau2022", *source).status == 0
    refused(*command, "--data.path", other, names=[folder, "data.path"])
    assert hashes(folder) == before


def test_resume_from_another_start(refused, hashes, copy_of_run, tiny_run):
    folder, command = copy_of_run
    before = hashes(folder)
    refused(*command, "--init", tiny_run / "model", names=[folder, "init"])
    assert hashes(folder) == before


def test_nothing_to_resume(refused, scenes, tiny, tmp_path):
    run = tmp_path / "run"
    settings = [*tiny, "--data.path", scenes, "--run", run, "--resume", "must"]
    refused("train", *settings, names=[run, "no checkpoint"])
    assert not run.exists()


def test_a_run_without_its_checkpoints_is_not_overwritten(refused, hashes, copy_of_run):
    folder, command = copy_of_run
    shutil.rmtree(folder / "checkpoints")
    before = hashes(folder)
    refused(*command, names=[folder, "--resume never"])
    assert hashes(folder) == before


@pytest.mark.parametrize(
    ("setting", "carried"),
    [
        (["--features.preset", "passt_128"], "cpjku22_256"),
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


# --- damaged checkpoints and models -------------------------------------------------------------------


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (truncated("state.json"), "state.json"),
        slow(text("state.json", "no JSON at all"), "state.json"),
        slow(text("state.json", "[]"), "state.json"),
        (text("state.json", '{"format": 99}'), "state.json"),
        slow(text("state.json", '{"format": 1}'), "state.json"),
        slow(removed("state.json"), "state.json"),
        (edited("state.json", lambda d: d["progress"].update(epochs=3)), "state.json"),
        slow(edited("state.json", lambda d: d.pop("scaler")), "state.json"),
        (truncated("network.safetensors"), "network.safetensors"),
        slow(removed("network.safetensors"), "network.safetensors"),
        slow(text("network.safetensors", ""), "network.safetensors"),
        slow(truncated("optimizer.safetensors"), "optimizer.safetensors"),
        slow(removed("optimizer.safetensors"), "optimizer.safetensors"),
        slow(flipped("network.safetensors"), "network.safetensors"),
        (flipped("optimizer.safetensors"), "optimizer.safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    cli, copy_of_stopped_run, tiny_run, damage, name
):
    folder, command = copy_of_stopped_run
    earlier, last = sorted((folder / "checkpoints").iterdir())
    damage(last)
    outcome = cli(*command)
    assert outcome.status == 0, outcome.err
    first, second = outcome.err.splitlines()[:2]
    assert first.startswith(f"{last / name}: is damaged or does not fit (")
    assert first.endswith(f"; going on from {earlier.name} instead")
    assert f"goes on from {earlier.name}" in second
    assert (folder / "checkpoints" / f"damaged-{last.name}").is_dir()
    assert_same_run(folder, tiny_run)


def test_without_a_whole_checkpoint_nothing_is_touched(refused, hashes, copy_of_stopped_run):
    folder, command = copy_of_stopped_run
    for path in (folder / "checkpoints").iterdir():
        truncated("network.safetensors")(path)
    before = hashes(folder)
    refused(*command, names=["network.safetensors", "no whole checkpoint", "--resume never"])
    assert hashes(folder) == before


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
