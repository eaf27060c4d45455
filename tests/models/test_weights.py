"""Weights of one's own files: found under any prefix, or refused by the first name that is wrong."""

import pytest
import safetensors.torch
import torch
from networks import Smooth, randomised
from torch import nn

from cpprune.models.weights import load_weights
from shards.errors import UserError


@pytest.fixture
def network():
    return Smooth(3)


@pytest.fixture
def state():
    return randomised(Smooth(3), seed=5).state_dict()


def assert_loaded(network, state):
    own = network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("key", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model.", "_orig_mod."])
def test_weights_are_found_under_keys_and_prefixes(network, state, tmp_path, key, prefix):
    content = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    torch.save({key: content, "epoch": 3} if key else content, tmp_path / "own.pth")
    assert load_weights(network, tmp_path / "own.pth") == 0
    assert_loaded(network, state)


def test_safetensors(network, state, tmp_path):
    safetensors.torch.save_file(state, tmp_path / "own.safetensors")
    assert load_weights(network, tmp_path / "own.safetensors") == 0
    assert_loaded(network, state)


def test_what_lies_beside_the_network_is_counted(network, state, tmp_path):
    content = {f"model.{name}": tensor for name, tensor in state.items()}
    content |= {"mel.0.kernel": torch.zeros(3), "mel.1.bank": torch.zeros(3)}
    torch.save({"state_dict": content}, tmp_path / "own.ckpt")
    assert load_weights(network, tmp_path / "own.ckpt") == 2
    assert_loaded(network, state)


def test_a_network_with_a_part_called_model(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 3)

    own, other = Wrapped(), Wrapped()
    torch.save(other.state_dict(), tmp_path / "own.pth")
    load_weights(own, tmp_path / "own.pth")
    assert_loaded(own, other.state_dict())


def test_tensors_that_are_left_out_keep_their_values(network, state, tmp_path):
    before = network.out.weight.detach().clone()
    state["out.weight"] = torch.zeros(7, 8)
    del state["out.bias"]
    torch.save(state, tmp_path / "own.pth")
    load_weights(network, tmp_path / "own.pth", {"out.weight", "out.bias"})
    assert torch.equal(network.out.weight, before)
    assert torch.equal(network.depthwise.weight, state["depthwise.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("stem.1.running_var"), r"lacks stem\.1\.running_var .* shape \[8\]"),
        (lambda s: s.update({"more": torch.zeros(1)}), "has more, which the network has not"),
        (
            lambda s: s.update({"out.weight": torch.zeros(4, 8)}),
            r"out\.weight has shape \[4, 8\], but \[3, 8\]",
        ),
        (lambda s: s["out.bias"].fill_(float("nan")), "not finite, in out.bias"),
        (lambda s: s.update({"epoch": 3}), "is not a state dict"),
    ],
)
def test_the_first_mismatch_is_one_line(network, state, tmp_path, change, message):
    change(state)
    file = tmp_path / "own.pth"
    torch.save(state, file)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(network, file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_weights(network, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_weights(network, tmp_path / "none.pth")
    for name in ("own.pth", "own.safetensors"):
        (tmp_path / name).write_bytes(b"text")
        with pytest.raises(UserError, match=name):
            load_weights(network, tmp_path / name)
    torch.save(Smooth(3), tmp_path / "whole.pth")
    with pytest.raises(UserError, match="is not a plain state dict"):
        load_weights(network, tmp_path / "whole.pth")
