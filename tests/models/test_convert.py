"""Weights made elsewhere: read without running anything, or refused in one line."""

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import PRUNED, TEACHER, keep_first, randomised
from torch import nn

import cpprune
from cpprune.audio.config import PRESETS
from cpprune.models.convert import import_state_dict
from cpprune.models.resize import layer_widths
from shards.errors import UserError
from shards.sources.tau2022 import LABELS


def trained(**config: Any) -> nn.Module:
    """A network with random weights and statistics."""
    cut = config.pop("cut", {})
    network = cpprune.build_model("cp_resnet", **config)
    if cut:
        keep_first(network, cut)
    return randomised(network).eval()


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Imports some bytes, which must be refused and leave nothing; returns the message."""

    def check(payload: bytes, **options: Any) -> str:
        file = tmp_path / "weights.pth"
        file.write_bytes(payload)
        with pytest.raises(UserError) as caught:
            import_state_dict(file, tmp_path / "model", "cpjku22_256", **options)
        assert not (tmp_path / "model").exists()
        message = str(caught.value)
        assert message.startswith(f"{file}: ")
        assert "\n" not in message
        return message

    return check


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
@pytest.mark.parametrize("nested", [False, True])
def test_names_of_lightning_and_ddp(prefix: str, nested: bool, tmp_path: Path) -> None:
    network = trained(widths=[4, 5, 6])
    content: dict[str, Any] = {f"{prefix}{k}": v for k, v in network.state_dict().items()}
    if nested:
        content = {"state_dict": content, "epoch": 3, "global_step": 17}
    torch.save(content, tmp_path / "weights.pth")
    model = import_state_dict(tmp_path / "weights.pth", tmp_path / "model", "passt_128")
    wave = torch.rand(2, 32_000, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = network(cpprune.log_mel("passt_128")(wave))
    assert expected.std() > 0.01
    assert torch.equal(model.eval()(wave), expected)
    again = cpprune.load(tmp_path / "model")
    assert torch.equal(again(wave), expected)
    assert again.features.spec == PRESETS["passt_128"]
    assert again.classes == LABELS
    assert again.metadata["provenance"] == {"imported": "weights.pth"}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"base_channels": 32, "channels_multiplier": 1},
        {"widths": [18, 37, 75]},
        PRUNED,
        TEACHER,
        {"widths": [8, 16, 8], "groups": [2, 4, 8]},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_any_widths_are_found(config: dict[str, Any], zipped: bool, tmp_path: Path) -> None:
    network = trained(**config)
    file = tmp_path / "weights.pth"
    file.write_bytes(saved(network.state_dict(), _use_new_zipfile_serialization=zipped))
    model = import_state_dict(file, tmp_path / "model", "cpjku22_256", rho=config.get("rho", 4))
    assert layer_widths(model.network) == layer_widths(network)
    x = torch.randn(2, 1, 64, 32, generator=torch.Generator().manual_seed(1))
    again = cpprune.load(tmp_path / "model").network
    assert torch.equal(again(x), network(x))


def test_a_shortcut_between_equal_widths_is_found(tmp_path: Path) -> None:
    # Pruning may leave a shortcut as wide as what goes into it.
    state = trained(**PRUNED).state_dict()
    outputs = ("conv2", "bn2", "shortcut.conv", "shortcut.bn")  # 7 channels, cut to 5
    inputs = ("stage2.block2.conv1", "stage3.block1.conv1", "stage3.block1.shortcut.conv")
    for name, tensor in state.items():
        layer = name.rpartition(".")[0]
        if layer.startswith("stage2.") and layer.endswith(outputs) and tensor.ndim:
            state[name] = tensor[:5].clone()
        elif layer in inputs:
            state[name] = tensor[:, :5].clone()
    torch.save(state, tmp_path / "weights.pth")
    model = import_state_dict(tmp_path / "weights.pth", tmp_path / "model", "cpjku22_256")
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert "stage2.block1.shortcut.conv.weight" in model.network.state_dict()


def test_classes_are_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    state = trained(widths=[4, 5, 6], num_classes=3).state_dict()
    torch.save(state, tmp_path / "three.pth")
    classes = ["x", "y", "z"]
    model = import_state_dict(tmp_path / "three.pth", tmp_path / "out", "dcase24", classes)
    assert model.classes == ("x", "y", "z")
    assert "has 3 outputs, but 10 classes" in refused(saved(state))
    assert "has 3 outputs, but 2 classes" in refused(saved(state), classes=["x", "y"])


def test_numbers_that_are_not_finite_are_refused(refused: Callable[..., str]) -> None:
    state = trained(widths=[4, 5, 6]).state_dict()
    state["stage1.block1.conv1.weight"][0] = math.nan
    assert "not finite, in stage1.block1.conv1.weight" in refused(saved(state))


def test_another_rho_is_refused(refused: Callable[..., str]) -> None:
    state = trained(widths=[4, 5, 6], rho=6).state_dict()
    assert "--rho 4" in refused(saved(state))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.pth: no such file"):
        import_state_dict(tmp_path / "nothing.pth", tmp_path / "model", "cpjku22_256")
    with pytest.raises(UserError, match="no such file"):
        import_state_dict(tmp_path, tmp_path / "model", "cpjku22_256")


class Trap:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["alone", "among tensors", "nested"])
def test_no_code_is_run(
    zipped: bool, place: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    trap = Trap(tmp_path / "caught")
    state = {**trained(widths=[4, 5, 6]).state_dict(), "trap": trap}
    content = {"alone": trap, "among tensors": state, "nested": {"state_dict": state}}[place]
    payload = saved(content, _use_new_zipfile_serialization=zipped)
    assert "is not a plain state dict" in refused(payload)
    assert not trap.file.exists()
    pickle.loads(pickle.dumps(trap)).close()  # it does spring
    assert trap.file.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_whole_model_is_refused(refused: Callable[..., str]) -> None:
    assert "save model.state_dict()" in refused(saved(trained(widths=[4, 5, 6])))
    assert "save model.state_dict()" in refused(pickle.dumps(trained(widths=[4, 5, 6])))


STATE = trained(widths=[4, 5, 6]).state_dict()
ZIPPED = saved(STATE)
LEGACY = saved(STATE, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="one byte"),
        pytest.param(b"hello world\n" * 20, id="text"),
        pytest.param(b"filename\tscene_label\n", id="a list"),
        pytest.param(b"\x80\x02.", id="an empty pickle"),
        pytest.param(b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40), id="a recording"),
        pytest.param(bytes(range(256)) * 20, id="every byte"),
        *[pytest.param(ZIPPED[:n], id=f"cut at {n}") for n in (2, 100, 1000, 20_000)],
        pytest.param(ZIPPED[:-1], id="cut at the end"),
        *[pytest.param(LEGACY[:n], id=f"legacy cut at {n}") for n in (1, 100, 5000, 11_000)],
        pytest.param(LEGACY[:-1], id="legacy cut at the end"),
    ],
)
def test_what_is_no_torch_file_is_refused(payload: bytes, refused: Callable[..., str]) -> None:
    refused(payload)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, about what it finds
def test_any_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    file = tmp_path / "weights.pth"
    messages = []
    for _ in range(100):
        payload = bytearray(ZIPPED)
        for place in torch.randint(3000, (4,), generator=generator).tolist():
            payload[place] = int(torch.randint(256, (1,), generator=generator))
        file.write_bytes(payload)
        try:
            import_state_dict(file, tmp_path / "model", "cpjku22_256")
        except UserError as refusal:
            messages.append(str(refusal))
    assert messages
    assert all(message.startswith(f"{file}: ") for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no CP-ResNet"),
        (nn.Linear(3, 2).state_dict(), "holds no CP-ResNet.*weight, bias"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).state_dict(), "holds no CP-ResNet"),
        ([torch.zeros(2)], "must map names to tensors"),
        (torch.zeros(2), "must map names to tensors"),
        (None, "must map names to tensors"),
        ({"epoch": 3}, "must map names to tensors"),
        ({0: torch.zeros(2)}, "must map names to tensors|holds no CP-ResNet"),
        ({"state_dict": {0: torch.zeros(2)}}, "must map names to tensors|holds no CP-ResNet"),
        (torch.optim.Adam([torch.zeros(1)]).state_dict(), "must map names to tensors"),
        ({k: v for k, v in STATE.items() if "stage2" not in k}, "does not fit a CP-ResNet"),
        ({k: v for k, v in STATE.items() if k != "stage1.block1.conv1.weight"}, "does not fit"),
        ({k: v for k, v in STATE.items() if k != "stage1.block1.conv2.weight"}, "does not fit"),
        ({k: v for k, v in STATE.items() if "bn2.bias" not in k}, "does not fit a CP-ResNet"),
        ({**STATE, "extra.weight": torch.zeros(3)}, "does not fit a CP-ResNet"),
        ({**STATE, "stage1.block1.conv2.weight": torch.zeros(4, 0, 1, 1)}, "does not fit"),
        ({**STATE, "stage1.block1.conv2.weight": torch.zeros(4, 9, 1, 1)}, "does not fit"),
        ({**STATE, "in_c.0.weight": torch.zeros(0, 1, 5, 5)}, "does not fit"),
    ],
)
def test_other_networks_are_refused(
    content: object, message: str, refused: Callable[..., str]
) -> None:
    assert re.search(message, refused(saved(content)))
