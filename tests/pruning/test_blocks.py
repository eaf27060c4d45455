"""Whole blocks: which can be removed, how they are scored, and plans that remove them."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow
from networks import SHAPE, parameters, plan_for, randomised
from torch import Tensor, nn
from torch.nn import functional

import cpprune
from cpprune.models.factory import make
from cpprune.models.fingerprint import fingerprint, structure
from cpprune.models.removed_blocks import remove_blocks, removed_blocks
from cpprune.models.resize import layer_widths
from cpprune.pruning.blocks import (
    RemovedBlock,
    candidate_blocks,
    influence,
    lowest_blocks,
    removable_blocks,
)
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.plan import Plan, read_plan, with_blocks, without_blocks, write_plan
from cpprune.pruning.preview import preview
from cpprune.pruning.surgery import apply_plan, carry, kept_entries
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


# --- plans --------------------------------------------------------------------------------------------

GONE = [RemovedBlock("stage1.block2", 0.25), RemovedBlock("stage3.block2")]


def plan_with_blocks(network: nn.Module, **changes: Any) -> Plan:
    """Plan what the recipe cuts of a network without two blocks."""
    original = layer_widths(network)
    left = without_blocks(network, GONE)
    return with_blocks(network, GONE, plan_for(left, original_widths=original, **changes))


def test_a_plan_removes_blocks_and_then_channels(make_network: Make) -> None:
    network = make_network()
    plan = plan_with_blocks(network)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.structure == structure(network)
    assert plan.weights == fingerprint(network)
    assert not any("stage1.block2" in group.layer for group in plan.groups)
    left = copy.deepcopy(network)
    remove_blocks(left, [block.name for block in GONE])
    by_hand = copy.deepcopy(left)
    apply_plan(by_hand, SHAPE, plan_for(left, original_widths=layer_widths(network)))
    apply_plan(network, SHAPE, plan)
    assert fingerprint(network) == fingerprint(by_hand)
    assert set(layer_widths(network).values()) == {18, 37, 75}
    assert removed_blocks(network) == [block.name for block in GONE]
    with pytest.raises(UserError, match="applied already"):
        apply_plan(network, SHAPE, plan)


def test_a_budget_is_that_of_what_is_left(make_network: Make) -> None:
    network = make_network()
    plan = plan_with_blocks(network, budget="params<=20000")
    apply_plan(network, SHAPE, plan)
    assert 19_900 < parameters(network) <= 20_000


def test_blocks_alone_leave_every_channel(make_network: Make) -> None:
    network = make_network(base_channels=4)
    plan = with_blocks(network, GONE, None)
    shown = preview(network, SHAPE, [plan])
    assert shown["removed_blocks"] == [
        {"name": "stage1.block2", "score": 0.25},
        {"name": "stage3.block2", "score": None},
    ]
    left = without_blocks(network, GONE)
    assert shown["after"]["parameters"] == parameters(left)
    layers = {layer["name"]: layer for layer in shown["layers"]}
    assert layers["stage1.block2.conv1"]["before"] == 4
    assert layers["stage1.block2.conv1"]["after"] == 0
    assert layers["stage1.block2.conv1"]["macs_after"] == 0
    assert layers["stage1.block1.conv1"]["after"] == 4
    assert shown["left_alone"].keys() == {"feed_forward.0"}
    apply_plan(network, SHAPE, plan)
    assert fingerprint(network) == fingerprint(left)


def test_the_optimizers_state_of_a_block_goes_with_it(make_network: Make) -> None:
    network = make_network(base_channels=4)
    kept = kept_entries(network, SHAPE, plan_with_blocks(network))
    values = {f"{name}/exp_avg": p.detach() for name, p in network.named_parameters()}
    values |= {f"{name}/step": torch.tensor(3.0) for name, _ in network.named_parameters()}
    carried = carry(values, kept)
    apply_plan(network, SHAPE, plan_with_blocks(network))
    own = dict(network.named_parameters())
    assert carried.keys() == {f"{name}/{key}" for name in own for key in ("exp_avg", "step")}
    assert all(torch.equal(carried[f"{name}/exp_avg"], p) for name, p in own.items())


def test_a_plan_is_read_back_and_an_edited_one_checked(make_network: Make, tmp_path: Path) -> None:
    network, file = make_network(base_channels=4), tmp_path / "plan.json"
    for plan in (plan_with_blocks(network), with_blocks(network, GONE, None)):
        write_plan(file, plan)
        assert read_plan(file, network, SHAPE) == plan
    written = json.loads(file.read_text())
    for names in (["stage2.block1"], ["stage9"], ["in_c"], ["stage1.block2"] * 2, [""]):
        blocks = [{"name": name} for name in names]
        file.write_text(json.dumps({**written, "removed_blocks": blocks}))
        with pytest.raises(
            UserError, match=r"plan\.json: its removed_blocks must be some of stage1"
        ):
            read_plan(file, network, SHAPE)
    # A group that goes with its block.
    group = {"layer": "stage1.block2.conv1", "width": 4, "keep": [0]}
    file.write_text(json.dumps({**written, "groups": [group]}))
    with pytest.raises(UserError, match="its groups must be some of"):
        read_plan(file, network, SHAPE)


def test_plans_of_older_versions_remove_no_block(make_network: Make, tmp_path: Path) -> None:
    network = make_network(base_channels=4)
    document = plan_for(network).to_json()
    del document["removed_blocks"]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert read_plan(tmp_path / "plan.json", network, SHAPE) == plan_for(network)


def test_a_plan_whose_block_is_none(make_network: Make) -> None:
    network = make_network(base_channels=4)
    plan = replace(with_blocks(network, GONE, None), removed_blocks=[RemovedBlock("in_c.0")])
    with pytest.raises(UserError, match=r"the pruning plan does not fit the network: .*no block"):
        apply_plan(network, SHAPE, plan)
