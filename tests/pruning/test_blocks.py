"""Whole blocks: which can be removed, and how they are scored."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow
from networks import SHAPE, randomised
from torch import Tensor, nn
from torch.nn import functional

import cpprune
from cpprune.models.changes import removed_blocks
from cpprune.models.factory import make
from cpprune.models.fingerprint import fingerprint
from cpprune.pruning.blocks import (
    RemovedBlock,
    candidate_blocks,
    influence,
    lowest_blocks,
    removable_blocks,
)
from cpprune.pruning.config import PruneConfig
from shards.errors import UserError

Make = Callable[..., nn.Module]

IMAGE = (3, 32, 32)
# Those of CP-ResNet whose input is as wide as their output.
OF_CP_RESNET = ["stage1.block1", "stage1.block2", "stage2.block2", "stage3.block2"]


# Those of its blocks that have gates (squeeze and excitation) are none the less blocks.
OF_MOBILENET = ("1.1", "2.1", "2.2", "3.0", "3.1", "4.1", "4.2")


# --- which blocks can be removed ----------------------------------------------------------------------


def test_the_blocks_of_cp_resnet(make_network: Make) -> None:
    network = make_network(base_channels=4).train()
    before = fingerprint(network)
    assert removable_blocks(network, SHAPE) == OF_CP_RESNET
    assert fingerprint(network) == before
    assert all(module.training for module in network.modules())
    assert removed_blocks(network) == []
    # As it is initialised, every branch is silent, and trained or not makes no difference.
    fresh = cpprune.build_model("cp_resnet", base_channels=4)
    assert removable_blocks(fresh, SHAPE) == OF_CP_RESNET


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("cp_mobile", ["stages.s1.b1", "stages.s1.b2", "stages.s2.b5"]),
        # All but the first of each stage, which has other channels or a stride.
        ("bc_resnet", [f"stages.{s}.{b}" for s, n in enumerate((2, 2, 4, 4)) for b in range(1, n)]),
        ("cnn_gru", []),
    ],
)
def test_the_blocks_of_other_families(family: str, expected: list[str]) -> None:
    assert removable_blocks(cpprune.build_model(family), (1, 256, 64)) == expected


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize(
    ("name", "expected", "settings"),
    [
        slow("resnet18", ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"], {}),
        (
            "convnext_atto",
            [f"stages.{s}.blocks.{b}" for s, n in enumerate((2, 2, 6, 2)) for b in range(n)],
            {},
        ),
        slow("mobilenetv3_small_050", [*(f"blocks.{n}" for n in OF_MOBILENET)], {}),
        ("vit_tiny_patch16_224", [f"blocks.{n}" for n in range(12)], {"img_size": 32}),
    ],
)
def test_the_blocks_of_timm(name: str, expected: list[str], settings: dict[str, Any]) -> None:
    arguments = {"model_name": name, "pretrained": False, **settings}
    network = make("timm:create_model", 4, arguments)
    assert removable_blocks(network, IMAGE) == expected


class Between(nn.Module):
    """A stem and a classifier with something between them that maps feature maps to such."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(1, 8, 3), middle, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = functional.relu(self.stem(x))
        logits: Tensor = self.head(self.middle(x).mean((2, 3)))
        return logits


class Residual(nn.Module):
    """What is added to, after what, and before what."""

    def __init__(
        self, *branch: nn.Module, scale: float = 1.0, after: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.branch, self.scale = nn.Sequential(*branch), scale
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return x and its branch, added."""
        out: Tensor = self.after(self.scale * (x + self.branch(x)))
        return out


class Gate(Residual):
    """Channel attention."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, scaled."""
        return x * torch.sigmoid(self.branch(x.mean((2, 3), keepdim=True)))


class HalfPasses(nn.Module):
    """A unit as that of ShuffleNet: half of the channels pass, the layers make the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return both halves."""
        left, right = x.chunk(2, 1)
        return torch.cat([left, self.conv(right)], 1)


class Asked(nn.Module):
    """The block's own attribute is read."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(conv())

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block does."""
        out: Tensor = self.block(x) * self.block.scale
        return out


class Twice(nn.Module):
    """One block, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(conv())

    def forward(self, x: Tensor) -> Tensor:
        """Return it done twice."""
        out: Tensor = self.block(self.block(x))
        return out


def conv(groups: int = 1) -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1, groups=groups)


def norm() -> nn.Module:
    return nn.BatchNorm2d(8)


def tied() -> nn.Module:
    one, other = Residual(conv()), Residual(conv())
    other.branch[0].weight = one.branch[0].weight
    return nn.Sequential(one, other, Residual(conv()))


class Aliased(nn.Module):
    """One block of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(conv())
        self.other = nn.Sequential(self.block)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block does, by its second name."""
        out: Tensor = self.other(x)
        return out


@pytest.mark.parametrize(
    ("middle", "expected"),
    [
        (Residual(conv(), norm(), nn.ReLU()), [""]),
        (Residual(conv(), norm(), after=nn.Sequential(norm(), nn.ReLU())), [""]),
        (Residual(conv(), scale=0.7), [""]),
        (Residual(conv(), nn.GroupNorm(1, 8), after=nn.GroupNorm(1, 8)), [""]),
        (Residual(conv(), after=nn.ReLU6()), [""]),
        (nn.Sequential(conv(), Residual(conv()), Residual(conv())), ["1", "2"]),
        # Most of the weights lie beside the block within.
        (Residual(Residual(conv(8)), conv()), [""]),
        (Residual(Residual(conv()), conv(8)), ["branch.0"]),
        (nn.Sequential(conv(), norm()), []),
        (nn.Sequential(norm(), nn.ReLU()), []),
        (Gate(nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1)), []),
        (Gate(nn.Conv2d(8, 8, 1), norm()), []),
        (nn.Sequential(conv(), HalfPasses()), []),
        # Not the block inside.
        (nn.Sequential(conv(), Asked()), ["1"]),
        (nn.Sequential(conv(), Twice()), ["1"]),
        (nn.Sequential(conv(), *tied()), ["3"]),
        (nn.Sequential(conv(), Aliased()), []),
    ],
)
def test_what_is_a_block(middle: nn.Module, expected: list[str]) -> None:
    names = [f"middle.{name}" if name else "middle" for name in expected]
    assert removable_blocks(Between(middle), (1, 12, 12)) == names


def test_a_network_is_no_block_of_itself_nor_what_holds_all_but_the_classifier() -> None:
    class Bare(nn.Sequential):
        """A block and a classifier."""

    bare = Bare(Residual(nn.Conv2d(1, 1, 3, padding=1)), nn.Flatten(), nn.Linear(144, 4))
    assert removable_blocks(bare, (1, 12, 12)) == []


def test_layers_of_a_transformer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 20, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    network = nn.Sequential(nn.Linear(8, 16), encoder, nn.Flatten(), nn.Linear(64, 4))
    # It reads an attribute of the first.
    assert removable_blocks(network, (4, 8)) == ["1.layers.1", "1.layers.2"]


def test_a_network_that_cannot_be_run() -> None:
    with pytest.raises(UserError, match=r"prune\.blocks: the network cannot be copied and run"):
        removable_blocks(Between(conv()), (2, 12, 12))


# --- which of them are chosen -------------------------------------------------------------------------


def test_block_influence_by_hand(make_network: Make) -> None:
    network = make_network(base_channels=4).eval()
    before = fingerprint(network)
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(3))
    names = removable_blocks(network, SHAPE)
    found = influence(network.train(), names, x)
    assert fingerprint(network) == before
    assert network.training
    twin = copy.deepcopy(network).double().eval()
    y = twin.in_c(x.double())
    expected = {}
    with torch.no_grad():
        for stage in ("stage1", "stage2", "stage3"):
            for name, module in twin.get_submodule(stage).named_children():
                z = module(y)
                one, other = (t.flatten(1).numpy() for t in (y, z))
                if one.shape == other.shape:
                    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
                    expected[f"{stage}.{name}"] = 1 - ((one * other).sum(1) / lengths).mean()
                y = z
    assert found == pytest.approx({name: expected[name] for name in names}, rel=1e-9)
    assert all(0 < score < 1 for score in found.values())


def test_an_input_that_the_block_changes_in_place() -> None:
    middle = Residual(nn.ReLU(inplace=True), conv())
    network = nn.Sequential(nn.Conv2d(1, 8, 3), middle, nn.Flatten(), nn.Linear(800, 4))
    x = torch.randn(2, 1, 12, 12)
    scores = influence(randomised(network), ["1"], x)
    before = network[0].double()(x.double()).flatten(1)
    after = middle.double()(network[0](x.double())).flatten(1)
    expected = 1 - functional.cosine_similarity(before, after).mean().item()
    assert scores["1"] == pytest.approx(expected, rel=1e-9)


def test_the_lowest_go_and_of_equal_ones_the_first() -> None:
    scores = {"a10": 0.5, "a9": 0.25 + 1e-15, "b": 0.25, "c": 0.1}
    assert [block.name for block in lowest_blocks(scores, 3)] == ["c", "a9", "b"]
    assert lowest_blocks(scores, 1) == [RemovedBlock("c", 0.1)]


def test_a_network_that_has_diverged(make_network: Make) -> None:
    network = make_network(base_channels=4)
    nn.init.constant_(network.get_parameter("stage1.block1.conv1.weight"), float("nan"))
    with pytest.raises(
        UserError, match=r"prune\.blocks: the outputs of stage1\.block1 are not fin"
    ):
        influence(network, OF_CP_RESNET, torch.ones(1, *SHAPE))


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ([], OF_CP_RESNET),
        (["stage1.block1"], OF_CP_RESNET[1:]),
        (["stage1.*"], OF_CP_RESNET[2:]),
        (["*.block2"], OF_CP_RESNET[:1]),
        (["stage2.block2.conv1"], [*OF_CP_RESNET[:2], OF_CP_RESNET[3]]),
        (["in_c.0"], OF_CP_RESNET),
        (["*"], []),
    ],
)
def test_blocks_that_are_ignored(ignore: list[str], left: list[str], make_network: Make) -> None:
    network = make_network(base_channels=4)
    config = PruneConfig(blocks=len(left), ignore=ignore)
    assert candidate_blocks(network, SHAPE, config) == left
    with pytest.raises(UserError) as caught:
        candidate_blocks(network, SHAPE, replace(config, blocks=len(left) + 1))
    text = str(caught.value)
    assert text.startswith(f"prune.blocks={len(left) + 1}: {len(left)} residual block(s) of")
    assert text.endswith(f"set prune.blocks to at most {len(left)}")
    assert all(name in text for name in left)
    assert ("prune.ignore" in text) == (len(left) < 4)


def test_patterns_that_match_nothing(make_network: Make) -> None:
    network = make_network(base_channels=4)
    for setting in ({"ignore": ["stage2.block1"]}, {"ratios": {"stage9.*": 0.2}}):
        config = PruneConfig(blocks=1, **setting)
        with pytest.raises(UserError, match=r"prune\.(ignore|ratios): no layer is called"):
            candidate_blocks(network, SHAPE, config)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"blocks": -1}, "prune.blocks=-1: must be at least 0"),
        ({"blocks": 1, "plan": "plan.json"}, "leave out prune.blocks"),
        ({"blocks": 1, "steps": 2}, "nothing is left for prune.steps=2"),
        (
            {"blocks": 1, "ratio": 0.2, "scope": "sensitivity", "sensitivity": "file"},
            "run cpprune sensitivity on the model that is left",
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PruneConfig(**settings)
