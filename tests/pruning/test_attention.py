"""nn.MultiheadAttention: every head loses the same positions, and the rest computes what it did."""

import copy
import math

import numpy as np
import pytest
import torch
from attentions import AST
from networks import plan_for
from torch import Tensor, nn
from torch.nn import functional
from zoo import Transformer

from cpprune.models.resize import fit
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.costs import cost_model
from cpprune.pruning.groups import dependency_graph
from cpprune.pruning.planner import make_plan
from cpprune.pruning.prunable import classify_groups, prunable_groups
from cpprune.pruning.regularizers import Penalty
from cpprune.pruning.surgery import apply_plan, kept_entries

SHAPE = (1, 28, 28)


class Attending(nn.Module):
    """Nothing but an attention of 3 heads between two layers; `settings` are the attention's."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 12, 7, stride=7)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True, **settings)  # type: ignore[arg-type]
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x)[0].mean(1))


def attended(network: Attending, x: Tensor, kept: list[int]) -> Tensor:
    """Return the logits if only some channels existed, 3 heads of them, written out."""
    tokens = network.patches(x).flatten(2).transpose(1, 2)[..., kept]
    layer, size = network.attention, len(kept) // 3
    weights, biases = layer.in_proj_weight.view(3, 12, 12), layer.in_proj_bias.view(3, 12)
    q, k, v = (
        (tokens @ weights[part][kept][:, kept].T + biases[part][kept]).unflatten(2, (3, size))
        for part in range(3)
    )
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(size)
    made = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)
    made = made @ layer.out_proj.weight[kept][:, kept].T + layer.out_proj.bias[kept]
    return made.mean(1) @ network.head.weight[:, kept].T + network.head.bias


def test_what_is_kept_attends_as_before() -> None:
    torch.manual_seed(0)
    network = Attending().double().eval()
    whole = copy.deepcopy(network)
    plan = plan_for(network, SHAPE, ratio=0.5)
    (group,) = plan.groups
    positions = {channel % 4 for channel in group.keep}
    assert len(positions) == 2
    assert group.keep == [h * 4 + p for h in range(3) for p in sorted(positions)]
    apply_plan(network, SHAPE, plan)
    assert network.attention.embed_dim == network.attention.out_proj.in_features == 6
    assert network.attention.head_dim == 2
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(network(x), attended(whole, x, group.keep), rtol=1e-9, atol=1e-9)
    fresh = Attending().double().eval()
    assert fit(fresh, network.state_dict())
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(x), network(x))


def test_entries_that_are_kept_are_known() -> None:
    network = Attending(add_bias_kv=True)
    plan = plan_for(network, SHAPE, ratio=0.25)
    kept = kept_entries(network, SHAPE, plan)
    values = {name: p.detach().flatten() for name, p in network.named_parameters()}
    apply_plan(network, SHAPE, plan)
    assert network.attention.bias_k.shape == (1, 1, 9)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, values[name][kept[name]]), name


def test_scores_are_of_all_entries_of_a_channel() -> None:
    torch.manual_seed(0)
    network = Attending()
    config = PruneConfig(ratio=0.25, criterion="magnitude")
    plan = make_plan(network, SHAPE, config, original_widths={"patches": 12})
    layer = network.attention
    in_each = layer.in_proj_weight.detach().view(3, 12, 12).abs()
    parts = [
        network.patches.weight.detach().flatten(1).abs().sum(1),
        # Rows and columns of all four projections, and their biases.
        in_each.sum((0, 2))
        + in_each.sum((0, 1))
        + layer.in_proj_bias.detach().view(3, 12).abs().sum(0)
        + layer.out_proj.weight.detach().abs().sum(1)
        + layer.out_proj.weight.detach().abs().sum(0)
        + layer.out_proj.bias.detach().abs(),
        network.head.weight.detach().abs().sum(0),
    ]
    scores = torch.stack(parts).mean(0).view(3, 4).mean(0)
    least = int(scores.argmin())
    assert plan.groups[0].removed == [least, least + 4, least + 8]


def test_a_penalty_pulls_every_entry_of_a_channel() -> None:
    network = Attending()
    penalty = Penalty(
        network, SHAPE, PruneConfig(ratio=0.5, start_epoch=1, sparsity="group_norm"), 1
    )
    pulled = torch.autograd.grad(
        penalty(torch.tensor(0)), [p for _, p in network.attention.named_parameters()]
    )
    assert all((gradient != 0).any() for gradient in pulled if gradient.ndim > 1)


@pytest.mark.parametrize("make", [AST, Transformer])
def test_the_cost_of_a_width_is_known(make: type[nn.Module]) -> None:
    network = make(10)
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        groups = prunable_groups(graph, network)
    model = cost_model(network, SHAPE, groups)
    plan = plan_for(network, SHAPE, ratio=0.5)
    widths = {entry.layer: len(entry.keep) for entry in plan.groups}
    apply_plan(network, SHAPE, plan)
    foreseen = model.cost(np.array([[widths[group.layer] for group in groups]]))["params"]
    assert foreseen == sum(p.numel() for p in network.parameters())


def test_keys_of_another_width_are_left_alone() -> None:
    class Crossing(Attending):
        def __init__(self) -> None:
            super().__init__(kdim=8, vdim=8)
            self.other = nn.Conv2d(1, 8, 7, stride=7)

        def forward(self, x: Tensor) -> Tensor:
            queries, keys = (
                layer(x).flatten(2).transpose(1, 2) for layer in (self.patches, self.other)
            )
            return self.head(functional.relu(self.attention(queries, keys, keys)[0].mean(1)))

    network = Crossing()
    with dependency_graph(network, torch.zeros(1, *SHAPE)) as graph:
        groups, reasons = classify_groups(graph, network)
    assert not groups
    assert "attention, which has keys or values of another width" in reasons["patches"]
