"""A model folder: the same model comes back, and whatever is wrong with the folder is named."""

import copy
import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from networks import parameters, plan_for, randomised

import cpprune
from cpprune.audio.config import PRESETS, MelSpec
from cpprune.audio.frontend import LogMel, ScaleImage, build_features
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.resize import layer_widths
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

CLASSES = ["bus", "metro", "park", "tram"]
SPEC = MelSpec(
    sample_rate=8000, window=200, hop=80, n_fft=256, n_mels=40, fmin_jitter=3, fmax_jitter=500
)


def make_model(config: dict[str, Any] | None = None, spec: MelSpec | None = SPEC) -> Model:
    config = {"widths": [4, 5, 6]} if config is None else config
    network = cpprune.build_model("cp_resnet", num_classes=4, **config)
    return Model(
        randomised(network),
        build_features(spec),
        family="cp_resnet",
        config=config,
        classes=CLASSES,
        clip_shape=(1, 28, 28) if spec is None else (spec.sample_rate,),
        metadata={"provenance": {"seed": 3}, "metrics": {"val": {"log_loss": 1.5}}},
    ).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifact.save(make_model(), tmp_path / "model")
    return tmp_path / "model"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    "config",
    [
        {"widths": [4, 5, 6]},
        {"base_channels": 3, "channels_multiplier": 1},
        {"widths": [4, 8, 6], "rho": 7, "blocks": [2, 1, 1], "groups": [1, 2, 1]},
    ],
)
def test_the_same_model_comes_back(config: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(config)
    artifact.save(model, tmp_path / "deep" / "model")
    again = cpprune.load(tmp_path / "deep" / "model")
    before, after = model.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name
    assert not any(module.training for module in again.modules())
    wave = torch.rand(3, 8000, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.equal(model(wave), again(wave))
    assert isinstance(again.features, LogMel)
    assert again.features.spec == SPEC
    assert again.classes == tuple(CLASSES)
    assert again.config == config
    assert again.family == "cp_resnet"
    assert again.clip_shape == (8000,)
    assert again.metadata == {"provenance": {"seed": 3}, "metrics": {"val": {"log_loss": 1.5}}}
    assert again.sample_rate == 8000
    # And a third time, from a folder and not from scratch.
    artifact.save(again, tmp_path / "third")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "third" / name).read_bytes() == (
            tmp_path / "deep" / "model" / name
        ).read_bytes()


def test_a_model_for_images_comes_back(tmp_path: Path) -> None:
    model = make_model(spec=None)
    artifact.save(model, tmp_path / "model")
    again = artifact.load(str(tmp_path / "model"))
    assert isinstance(again.features, ScaleImage)
    assert again.sample_rate is None
    assert again.input_shape == again.clip_shape == (1, 28, 28)
    images = torch.arange(2 * 784, dtype=torch.int64).view(2, 1, 28, 28).to(torch.uint8)
    assert torch.equal(model(images), again(images))


@pytest.mark.parametrize("pruned", ["inner", "stage 2 as wide as stage 1"])
def test_a_pruned_model_comes_back(pruned: str, tmp_path: Path) -> None:
    model = make_model({"base_channels": 6, "channels_multiplier": 2})
    shape = model.input_shape
    plan = plan_for(model.network, shape, ratio=0.3)
    cut = []
    for entry in plan.groups:
        if entry.layer == "stage2.block2.conv1":
            entry = replace(entry, keep=[3])
        if entry.layer.startswith("stage2.block1.shortcut") and pruned != "inner":
            entry = replace(entry, keep=[0, 2, 5, 11])
        cut.append(entry)
    apply_plan(model.network, shape, replace(plan, groups=cut))
    widths = layer_widths(model.network)
    assert widths["stage2.block2.conv1"] == 1
    assert (widths["stage2.block2.conv2"] == widths["in_c.0"]) == (pruned != "inner")
    artifact.save(model, tmp_path / "model")
    wave = torch.rand(2, 8000, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.equal(artifact.load(tmp_path / "model")(wave), model(wave))


def test_a_model_is_its_network_after_its_features() -> None:
    model = make_model()
    wave = torch.rand(3, 8000, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.equal(model(wave), model.network(model.features(wave)))
    assert tuple(model.features(wave).shape[1:]) == model.input_shape == (1, 40, 100)
    clips = (wave * 32768).round().to(torch.int16)
    assert torch.equal(model(clips), model(clips / 32768))


def test_given_weights_are_written_in_place_of_the_networks(tmp_path: Path) -> None:
    model = make_model()
    best = copy.deepcopy(randomised(model.network, seed=1).state_dict())
    randomised(model.network, seed=2)
    artifact.save(model, tmp_path / "model", weights=best)
    for name, tensor in artifact.load(tmp_path / "model").network.state_dict().items():
        assert torch.equal(tensor, best[name])


def test_the_folder_is_two_plain_files(folder: Path) -> None:
    assert names(folder) == ["model.json", "model.safetensors"]
    assert names(folder.parent) == ["model"]
    weights = folder / "model.safetensors"
    assert not zipfile.is_zipfile(weights)
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(weights.read_bytes())
    description = json.loads((folder / "model.json").read_text())
    assert description["architecture"] == "cp_resnet"
    assert description["classes"] == CLASSES
    assert description["widths"] == layer_widths(make_model().network)
    assert description["features"]["hop"] == 80
    assert description["input_shape"] == [1, 40, 100]
    assert description["clip_shape"] == [8000]
    assert description["metrics"] == {"val": {"log_loss": 1.5}}
    assert description["weights"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert description["weights"]["parameters"] == parameters(make_model().network)


def test_an_older_model_is_replaced_whole(folder: Path) -> None:
    (folder / "stray").touch()
    other = make_model({"widths": [2, 3, 4]})
    artifact.save(other, folder)
    assert layer_widths(artifact.load(folder).network) == layer_widths(other.network)
    assert names(folder) == ["model.json", "model.safetensors", "stray"]
    assert names(folder.parent) == ["model"]


@pytest.mark.parametrize("failing", ["model.safetensors", "model.json"])
def test_a_failed_save_leaves_the_older_model(
    failing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write = artifact.write_bytes

    def fail(path: Path, payload: bytes) -> None:
        if path.name == failing:
            write(path, payload[:10])
            raise OSError(28, "No space left on device")
        write(path, payload)

    monkeypatch.setattr(artifact, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        artifact.save(make_model({"widths": [2, 3, 4]}), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names(folder.parent) == ["model"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: no such model folder"):
        artifact.load(tmp_path / "nothing")


def test_a_run_folder_is_answered_with_its_model(folder: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model.json.*did you mean .*/model\?"):
        artifact.load(folder.parent)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        artifact.load(folder)


@pytest.mark.parametrize("place", [0, 8, 100, -1, -5000])
def test_a_flipped_byte_is_noticed(place: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    payload = bytearray(path.read_bytes())
    payload[place] ^= 1
    path.write_bytes(payload)
    with pytest.raises(UserError, match=r"model.safetensors: does not match the sha256"):
        artifact.load(folder)


def test_cut_weights_are_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="does not match the sha256"):
        artifact.load(folder)


@pytest.mark.parametrize("payload", [b"", b"no tensors at all"])
def test_weights_of_another_kind_are_noticed(payload: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(payload)
    digest = hashlib.sha256(payload).hexdigest()
    edit(folder, lambda d: d["weights"].update(sha256=digest))
    with pytest.raises(UserError, match=r"model\.safetensors: is not a safetensors file"):
        artifact.load(folder)


@pytest.mark.parametrize("change", ["one missing", "one too many", "one of another shape"])
def test_tensors_that_do_not_fit_are_noticed(change: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    if change == "one missing":
        del tensors["stage1.block1.bn1.bias"]
    elif change == "one too many":
        tensors["stage1.block3.bn1.bias"] = torch.zeros(4)
    else:
        tensors["stage1.block1.bn1.bias"] = torch.zeros(5)
    path.write_bytes(safetensors.torch.save(tensors))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(folder, lambda d: d["weights"].update(sha256=digest))
    with pytest.raises(UserError, match=r"model\.json: does not describe the weights"):
        artifact.load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"model"', "\udcff", '{"format": 1}', "{}"]
)
def test_what_is_no_description_is_named(text: str, folder: Path) -> None:
    (folder / "model.json").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=r"model\.json"):
        artifact.load(folder)


REQUIRED = ["format", "architecture", "config", "widths", "classes", "clip_shape", "features"]


@pytest.mark.parametrize("key", [*REQUIRED, "weights"])
def test_a_missing_key_is_noticed(key: str, folder: Path) -> None:
    edit(folder, lambda d: d.pop(key))
    with pytest.raises(UserError, match=r"model\.json"):
        artifact.load(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "has format 2, this version reads format 1"),
        (("architecture",), "resnet50", "'resnet50': choose one of bc_resnet, cnn_gru, cp_mobile"),
        (("widths", "in_c.0"), 9, "does not describe the weights"),
        (("widths", "stage2.block1.conv1"), 6, "does not describe the weights"),
        (("widths", "stage2.block1.conv1"), 0, "widths are not those of the weights"),
        (("widths", "stage2.block1.conv1"), "six", "does not describe the weights"),
        (("widths",), {}, "widths are not those of the weights"),
        (("widths",), [4, 5, 7], "does not describe the weights"),
        (("classes",), ["bus", "metro", "park"], "does not describe the weights"),
        (("classes",), [*CLASSES, "zoo"], "does not describe the weights"),
        (("classes",), 4, "does not describe the weights"),
        (("config", "rho"), 2, "does not describe the weights"),
        (("config", "depth"), 2, "depth"),
        (("config",), [], "does not describe the weights"),
        (("features", "n_fft"), 0, "does not describe|features"),
        (("features", "n_fft"), -1, "does not describe|features"),
        (("features", "n_fft"), "x", "does not describe|features"),
        (("features", "hop"), 0, "does not describe|features"),
        (("features", "hop"), "x", "does not describe|features"),
        (("features", "mels"), 3, "mels"),
        (("features",), 3, "does not describe"),
        (("features",), None, "does not describe|features|clip_shape"),
        (("clip_shape",), [], "does not describe|clip_shape"),
        (("clip_shape",), 3, "does not describe|clip_shape"),
        (("clip_shape",), ["x"], "does not describe|clip_shape"),
        (("weights", "sha256"), "0" * 64, "does not match the sha256"),
    ],
)
def test_what_does_not_fit_together_is_named(
    path: tuple[str, ...], value: Any, message: str, folder: Path
) -> None:
    def change(description: dict[str, Any]) -> None:
        for key in path[:-1]:
            description = description[key]
        description[path[-1]] = value

    edit(folder, change)
    with pytest.raises(UserError, match=message):
        artifact.load(folder)


def test_the_names_of_the_package(folder: Path) -> None:
    assert isinstance(cpprune.load(folder), Model)
    network = cpprune.build_model("cp_resnet", num_classes=7, widths=[18, 37, 75])
    assert network(torch.zeros(2, 1, 64, 32)).shape == (2, 7)
    for preset, spec in PRESETS.items():
        assert cpprune.log_mel(preset).spec == spec
    assert cpprune.log_mel().spec == PRESETS["cpjku22_256"]
