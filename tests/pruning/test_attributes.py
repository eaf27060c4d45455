"""Integers that the code of a module works with follow a cut: sizes and numbers of heads, widths."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attentions import FixedHeads, HeadsByNumber, ThreeLayers, VisionTransformer
from networks import plan_for, randomised, save_attentive
from torch import Tensor, nn

from cpprune.evaluation.operations import count_operations
from cpprune.models import artifact
from cpprune.models.changes import change_attributes, changed_attributes
from cpprune.pruning.budget import parse_budget
from cpprune.pruning.plan import Plan, plan_bytes, read_plan
from cpprune.pruning.preview import preview
from cpprune.pruning.surgery import apply_plan
from shards.errors import UserError

SHAPE = (1, 28, 28)
KEPT = 2  # of three heads, or of the four positions of each


def attended(whole: FixedHeads, x: Tensor, plan: Plan, size: int) -> Tensor:
    """Return the logits if only the kept channels of queries, keys and values existed, written out."""
    (keep,) = (entry.keep for entry in plan.groups if entry.layer == "attention.qkv")
    block = whole.attention
    stem = whole.stem(x)
    tokens = stem.flatten(2).transpose(1, 2)
    made = tokens @ block.qkv.weight[keep].T + block.qkv.bias[keep]
    q, k, v = (part.unflatten(2, (-1, size)).transpose(1, 2) for part in made.chunk(3, -1))
    heads = ((q @ k.transpose(-1, -2) / size**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    values = [channel - 24 for channel in keep if channel >= 24]
    y = tokens + heads @ block.proj.weight[:, values].T + block.proj.bias
    return whole.head(y.transpose(1, 2).view_as(stem).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "attributes", "size"),
    [
        # Every head loses the same positions; or, since the code knows their size, one head goes.
        (FixedHeads, {"attention.head_dim": KEPT, "attention.attn_dim": 3 * KEPT}, KEPT),
        (HeadsByNumber, {"attention.num_heads": KEPT, "attention.attn_dim": 4 * KEPT}, 4),
    ],
)
def test_what_is_kept_attends_as_before(
    make: type[FixedHeads], attributes: dict[str, int], size: int
) -> None:
    network = randomised(make(10)).double().eval()
    whole = copy.deepcopy(network)
    ignored = ["stem.*", "attention.proj"]
    plan = plan_for(network, SHAPE, ratio=0.3, ignore=ignored)
    assert plan.attributes == attributes
    apply_plan(network, SHAPE, plan)
    assert changed_attributes(network) == attributes
    assert network.attention.seed == 7
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    expected = attended(whole, x, plan, size)
    torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)

    again = plan_for(network, SHAPE, ratio=0.5, ignore=ignored)
    apply_plan(network, SHAPE, again)
    assert set(changed_attributes(network).values()) < {1, 2, 3, 4}
    assert network(x).isfinite().all()


def test_layers_that_share_a_size_lose_the_same_heads() -> None:
    network = randomised(ThreeLayers(10)).double().eval()
    whole = copy.deepcopy(network)
    plan = plan_for(network, SHAPE, ratio=0.3, ignore=["stem.*", "attention.dense"])
    (entry,) = plan.groups
    assert len(entry.removed) == 4
    assert len({channel // 4 for channel in entry.removed}) == 1
    apply_plan(network, SHAPE, plan)
    assert changed_attributes(network) == {"attention.all_head_size": 8}
    for name in ("query", "key", "value"):
        linear = whole.attention.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        assert network.attention.get_submodule(name).out_features == 8
        with torch.no_grad():
            linear.weight[entry.removed], linear.bias[entry.removed] = 0, 0
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(network(x), whole(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [FixedHeads, HeadsByNumber, ThreeLayers])
@pytest.mark.parametrize("budget", ["operations<=120000", "params<=800"])
def test_budgets_are_met(make: type[FixedHeads], budget: str) -> None:
    network = randomised(make(10))
    plan = plan_for(network, SHAPE, budget=budget)
    apply_plan(network, SHAPE, plan)
    (limit,) = parse_budget(budget)
    spent = {
        "operations": count_operations(network, SHAPE),
        "params": sum(p.numel() for p in network.parameters()),
    }
    assert 0.5 * limit.bound < spent[limit.kind] <= limit.bound
    assert network.eval()(torch.zeros(2, *SHAPE)).shape == (2, 10)


class AudioSpectrogramTransformer(nn.Module):
    """Two blocks of Hugging Face's AST, for images [B, 1, 32, 32]."""

    def __init__(self) -> None:
        from transformers import ASTConfig, ASTForAudioClassification

        super().__init__()
        sizes = {"hidden_size": 12, "intermediate_size": 24, "num_attention_heads": 3}
        sizes |= {"num_hidden_layers": 2, "max_length": 32, "num_mel_bins": 32, "patch_size": 8}
        config = ASTConfig(**sizes, frequency_stride=8, time_stride=8, num_labels=10)
        self.whole = ASTForAudioClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.whole(x[:, 0]).logits
        return logits


@pytest.mark.slow
def test_all_layers_of_hugging_faces_transformer_are_pruned() -> None:
    network, shape = AudioSpectrogramTransformer().eval(), (1, 32, 32)
    before = sum(p.numel() for p in network.parameters())
    plan = plan_for(network, shape, ratio=0.5)
    left = preview(network, shape, [plan])["left_alone"]
    assert list(left) == ["whole.classifier.dense"]
    sizes = [n for n in plan.attributes.items() if n[0].endswith("attention.head_dim")]
    assert [size for _, size in sizes] == [2, 2]
    apply_plan(network, shape, plan)
    assert sum(p.numel() for p in network.parameters()) < 0.45 * before
    assert network(torch.rand(2, *shape)).isfinite().all()


def test_a_width_that_the_network_remembers() -> None:
    network = VisionTransformer(10).eval()
    apply_plan(network, SHAPE, plan_for(network, SHAPE, ratio=0.5))
    assert network.hidden_dim == network.patches.out_channels == 6


def test_a_model_folder_knows_them(tmp_path: Path) -> None:
    network = save_attentive(tmp_path / "model")
    again = artifact.load(tmp_path / "model", trust=["attentions"]).network
    assert changed_attributes(again) == changed_attributes(network)
    x = torch.rand(2, *SHAPE)
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize(
    "attributes",
    [
        {"attention.head_dim": 5},
        {"attention.head_dim": 0},
        {"attention.head_dim": True},
        {"attention.heads": 2},
        {"attention.qkv.out_features": 2},
        {"somewhere.head_dim": 2},
        {"": 1},
        {"training": 1},
        {"attention.head_dim": "2"},
        ["attention.head_dim"],
        {"attention.head_dim": 2},  # without attn_dim
        {},
    ],
)
def test_a_folder_that_was_edited_is_one_line(tmp_path: Path, attributes: object) -> None:
    save_attentive(tmp_path / "model")
    file = tmp_path / "model/model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attributes": attributes}))
    with pytest.raises(UserError, match=r"model\.json") as found:
        artifact.load(tmp_path / "model", trust=["attentions"])
    assert "\n" not in str(found.value)


def test_a_plan_that_was_edited_is_refused(tmp_path: Path) -> None:
    network = FixedHeads(10)
    plan = plan_for(network, SHAPE, ratio=0.5)
    file = tmp_path / "plan.json"
    file.write_bytes(plan_bytes(plan))
    assert read_plan(file, network, SHAPE) == plan
    groups = [replace(entry, attributes={}) for entry in plan.groups]
    file.write_bytes(plan_bytes(replace(plan, groups=groups)))
    with pytest.raises(
        UserError, match=r"plan\.json: the attributes of attention\.qkv must be {'a"
    ):
        read_plan(file, network, SHAPE)


def test_others_stay_as_they_are() -> None:
    network = FixedHeads(10)
    for values in ({"attention.head_dim": 5}, {"attention.qkv.in_features": 2}, {"attention.x": 1}):
        with pytest.raises(ValueError, match="the network has no attention"):
            change_attributes(network, values)
    assert changed_attributes(network) == {}


def test_no_other_module_takes_the_place_of_one_that_is_not_there() -> None:
    network = VisionTransformer(10)
    with pytest.raises(ValueError, match=r"the network has no somewhere\.hidden_dim"):
        change_attributes(network, {"somewhere.hidden_dim": 6})
    assert network.hidden_dim == 12
