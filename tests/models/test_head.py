"""A new head on an old body, of any family, pruned or not."""

import pytest
import torch
from networks import SHAPE, keep_first, randomised

import cpprune
from cpprune.audio.frontend import ScaleImage
from cpprune.models.artifact import Model
from cpprune.models.config import ModelConfig
from cpprune.models.head import head_axes, with_new_head
from shards.errors import UserError

CLASSES = ["a", "b", "c"]


def model(name, cut=None):
    config = ModelConfig(name=name).network_config()
    network = randomised(cpprune.build_model(name, num_classes=10, **config))
    if cut:
        keep_first(network, cut)
    old = [str(k) for k in range(10)]
    return Model(network, ScaleImage(), family=name, config=config, classes=old, clip_shape=SHAPE)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("cp_resnet", {"feed_forward.0", "feed_forward.1"}),
        ("cp_mobile", {"feed_forward.0", "feed_forward.1"}),
        ("bc_resnet", {"classifier_conv"}),
        ("tf_sepnet", {"head"}),
        ("cnn_gru", {"head"}),
    ],
)
def test_the_head_is_new_and_the_rest_is_kept(name, head):
    old = model(name)
    torch.manual_seed(3)
    new = with_new_head(old, CLASSES)
    torch.manual_seed(3)
    cpprune.build_model(name, num_classes=3)
    assert {key.rpartition(".")[0] for key in new.fresh} == head
    before, after = old.network.state_dict(), new.network.state_dict()
    for key, tensor in after.items():
        if key in new.fresh:
            assert 3 in tensor.shape
        elif not key.startswith(tuple(head)):
            assert torch.equal(tensor, before[key]), key
    assert new.classes == tuple(CLASSES)
    assert new.network.eval()(torch.zeros(2, *SHAPE)).shape == (2, 3)
    assert old.network.eval()(torch.zeros(2, *SHAPE)).shape == (2, 10)


def test_a_pruned_body_gets_a_head_of_its_width():
    old = model("cp_resnet", {"stage3.block1.conv2": 50})
    torch.manual_seed(0)
    new = with_new_head(old, CLASSES)
    assert new.network.state_dict()["feed_forward.0.weight"].shape == (3, 50, 1, 1)
    assert (new.network.state_dict()["feed_forward.0.weight"] == 0).all(), "as a fresh one"
    assert new.network.eval()(torch.zeros(2, *SHAPE)).shape == (2, 3)
    kept = "stage3.block2.conv1.weight"
    assert torch.equal(new.network.state_dict()[kept], old.network.state_dict()[kept])


def test_axes_of_the_head_are_those_of_the_classes():
    assert head_axes("cnn_gru", {}, 4) == {"head.weight": [True, False], "head.bias": [True]}


def test_a_network_without_a_head_is_named(monkeypatch, tmp_path):
    (tmp_path / "headless.py").write_text(
        "from torch import nn\ndef make(num_classes: int) -> nn.Module: return nn.Linear(2, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="init_head=new: no tensor of headless:make depends"):
        head_axes("headless:make", {}, 3)
