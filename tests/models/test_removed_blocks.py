"""Blocks that were removed: the network is as if their branch were silent, and comes back from disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import SHAPE, randomised
from torch import nn

import cpprune
from cpprune.audio.config import MelSpec
from cpprune.audio.frontend import build_features
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.changes import remove_blocks, removed_blocks
from cpprune.models.head import with_new_head
from cpprune.models.resize import layer_widths
from shards.errors import UserError

SPEC = MelSpec(
    sample_rate=8000, window=200, hop=80, n_fft=256, n_mels=40, fmin_jitter=3, fmax_jitter=500
)
CONFIG: dict[str, Any] = {"widths": [4, 5, 6], "rho": 4, "blocks": [2, 2, 2]}
GONE = ["stage1.block2", "stage3.block2"]


def network() -> nn.Module:
    return randomised(cpprune.build_model("cp_resnet", num_classes=3, **CONFIG)).eval()


@pytest.fixture
def model() -> Model:
    """A model without two blocks."""
    own = network()
    remove_blocks(own, GONE)
    return Model(
        own,
        build_features(SPEC),
        family="cp_resnet",
        config=CONFIG,
        classes=["bus", "park", "tram"],
        clip_shape=(8000,),
    ).eval()


def test_a_network_without_a_block_is_one_whose_branch_is_silent() -> None:
    """The input of these blocks comes out of a ReLU, so that theirs lets it pass."""
    whole, without = network(), network()
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    remove_blocks(without, GONE)
    assert removed_blocks(without) == GONE
    assert not torch.allclose(whole(x), without(x))
    for name in GONE:
        silent = whole.get_submodule(f"{name}.bn2")
        assert isinstance(silent, nn.BatchNorm2d)
        nn.init.zeros_(silent.weight)
        nn.init.zeros_(silent.bias)
    assert torch.equal(whole(x), without(x))


def test_what_is_left_keeps_its_place_and_its_mode() -> None:
    own = network().train()
    before = [name for name, _ in own.get_submodule("stage1").named_children()]
    remove_blocks(own, GONE)
    assert [name for name, _ in own.get_submodule("stage1").named_children()] == before
    assert all(module.training for module in own.modules())
    assert not any(name.startswith(tuple(GONE)) for name in own.state_dict())
    assert "stage1.block2.conv1" not in layer_widths(own)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["stage9.block1"], "the network has no stage9.block1"),
        (["stage1.block2.conv3"], "the network has no"),
        ([""], " is no block of layers"),
        (["stage1.block2.conv1"], "stage1.block2.conv1 is no block of layers"),
        (["stage1.maxpool1"], "stage1.maxpool1 is no block of layers"),
        (["stage1.block2.shortcut"], "is no block of layers"),
        (["stage1.block2", "stage1.block2"], "stage1.block2 is no block of layers"),
        (["stage1.block2", "stage1"], "stage1 is no block of layers"),
        (["stage1", "stage1.block2"], "the network has no stage1.block2"),
    ],
)
def test_what_is_no_block(names: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        remove_blocks(network(), names)


def test_it_comes_back_from_disk_to_the_bit(model: Model, tmp_path: Path) -> None:
    artifact.save(model, tmp_path / "model")
    content = json.loads((tmp_path / "model/model.json").read_text())
    assert content["removed_blocks"] == GONE
    again = artifact.load(tmp_path / "model")
    assert removed_blocks(again.network) == GONE
    assert "removed_blocks" not in again.metadata
    clips = torch.randn(2, 8000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again(clips), model(clips))


def test_nothing_is_said_of_a_network_with_all_its_blocks(model: Model, tmp_path: Path) -> None:
    model.network = network()
    artifact.save(model, tmp_path / "model")
    assert "removed_blocks" not in json.loads((tmp_path / "model/model.json").read_text())
    assert removed_blocks(artifact.load(tmp_path / "model").network) == []


@pytest.mark.parametrize(
    "names",
    [
        ["stage1.block2"],  # of the other, the tensors are missing
        [*GONE, "stage2.block2"],
        [*GONE, "stage9.block1"],
        [*GONE, "stage1.block2"],
        [*GONE, ""],
        [*GONE, "feed_forward"],
        [*GONE, "in_c"],
        [*GONE, 3],
        "stage1.block2",
        {"stage1.block2": 1},
        None,
    ],
)
def test_forged_names_are_refused_in_one_line(model: Model, names: object, tmp_path: Path) -> None:
    artifact.save(model, tmp_path / "model")
    file = tmp_path / "model/model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "removed_blocks": names}))
    with pytest.raises(UserError, match=r"model\.json: does not describe the weights") as caught:
        artifact.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_block_that_changes_the_shape_is_refused(model: Model, tmp_path: Path) -> None:
    """Its tensors are not there, so that only running the network shows it."""
    own = network()
    remove_blocks(own, ["stage2.block1"])
    model.network = own
    artifact.save(model, tmp_path / "model")
    with pytest.raises(UserError, match=r"does not describe the weights .*cannot take inputs"):
        artifact.load(tmp_path / "model")


def test_a_new_head_on_what_is_left(model: Model) -> None:
    other = with_new_head(model, ["a", "b", "c", "d"])
    assert removed_blocks(other.network) == GONE
    assert other.network(torch.zeros(1, *model.input_shape)).shape == (1, 4)


def test_an_older_import_names_no_widths(model: Model, tmp_path: Path) -> None:
    """They are told from the tensors, of which the first block of a stage has no part any more."""
    own = randomised(cpprune.build_model("cp_resnet", num_classes=3, widths=[4, 4, 6])).eval()
    remove_blocks(own, ["stage2.block1"])
    model.network, model.config = own, {"rho": 4, "blocks": [2, 2, 2], "groups": [1, 1, 1]}
    artifact.save(model, tmp_path / "model")
    again = artifact.load(tmp_path / "model")
    x = torch.ones(1, *model.input_shape)
    assert torch.equal(again.network(x), own(x))


def test_a_network_that_is_fused_without_a_block(tmp_path: Path) -> None:
    own = randomised(cpprune.build_model("rep_cp_mobile", num_classes=3)).eval()
    remove_blocks(own, ["stages.s1.b2"])
    classes = ["bus", "park", "tram"]
    features = build_features(SPEC)
    model = Model(
        own, features, family="rep_cp_mobile", config={}, classes=classes, clip_shape=(8000,)
    )
    artifact.save(model, tmp_path / "model")
    again = artifact.load(tmp_path / "model").network
    assert removed_blocks(again) == ["stages.s1.b2"]
    x = torch.randn(3, *model.input_shape, generator=torch.Generator().manual_seed(1))
    expected = own(x)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(again(x), expected, rtol=1e-3, atol=1e-4)
