"""Recurrent layers: what is cut, against a network whose units are zero, and by every criterion."""

import copy

import pytest
import torch
from networks import plan_for
from torch import Tensor, nn
from zoo import CRNN, ConvLSTM

from cpprune.models.resize import fit, layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.criteria import CRITERIA
from cpprune.pruning.importance import saliency
from cpprune.pruning.preview import preview
from cpprune.pruning.regularizers import Penalty
from cpprune.pruning.surgery import apply_plan, kept_entries

SHAPE = (1, 28, 28)


class Both(CRNN):
    """Two directions, time first."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.rnn = nn.GRU(12, 10, bidirectional=True)
        self.head = nn.Linear(20, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.middle(self.stem(x)).mean(2).permute(2, 0, 1)
        return self.head(self.rnn(frames)[0].mean(0))


class Packed(CRNN):
    """Packs its frames, and names the arguments of the layer."""

    def forward(self, x: Tensor) -> Tensor:
        frames = self.middle(self.stem(x)).mean(2).permute(0, 2, 1)
        lengths = torch.full((len(x),), frames.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(frames, lengths, batch_first=True)
        last = self.rnn(input=packed, hx=None)[1]
        return self.head(last[0])


class Last(CRNN):
    """Reads the last state."""

    def forward(self, x: Tensor) -> Tensor:
        frames = self.middle(self.stem(x)).mean(2).permute(0, 2, 1)
        return self.head(self.rnn(input=frames, hx=None)[1][0])


class Deep(CRNN):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.rnn = nn.GRU(12, 10, num_layers=2, batch_first=True)


@pytest.mark.parametrize("make", [CRNN, ConvLSTM, Both, Last])
def test_a_cut_equals_zeroed_units(make: type[CRNN]) -> None:
    network = make(4).double().eval()
    plan = plan_for(network, SHAPE, ratio=0.5, ignore=["stem.*", "conv"])
    removed = {group.layer: group.removed for group in plan.groups}["rnn"]
    size = network.rnn.hidden_size
    silenced = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in silenced.rnn.named_parameters():
            first = size if name.endswith("_reverse") else 0
            for unit in (c - first for c in removed if first <= c < first + size):
                parameter.view(-1, size, *parameter.shape[1:])[:, unit] = 0
    width = layer_widths(network)["rnn"]
    pruned = copy.deepcopy(network)
    apply_plan(pruned, SHAPE, plan)
    assert layer_widths(pruned)["rnn"] == width // 2 == pruned.head.in_features
    assert pruned.rnn.hidden_size == size // 2 or size % 2
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    assert torch.allclose(pruned(x), silenced(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(pruned(x), network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [CRNN, ConvLSTM, Both])
def test_inputs_follow_and_the_network_is_rebuilt(make: type[CRNN]) -> None:
    network = make(4).eval()
    plan = plan_for(network, SHAPE, ratio=0.5)
    kept = kept_entries(network, SHAPE, plan)
    values = {name: p.detach().flatten() for name, p in network.named_parameters()}
    apply_plan(network, SHAPE, plan)
    assert network.rnn.input_size == network.conv.out_channels == 6
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, values[name][kept[name]])
    fresh = make(4).eval()
    fit(fresh, network.state_dict())
    fresh.load_state_dict(network.state_dict())
    x = torch.randn(3, *SHAPE)
    assert torch.equal(fresh(x), network(x))


@pytest.mark.parametrize(
    "name", [n for n, c in CRITERIA.items() if not c.needs_data and n != "bn_scale"]
)
@pytest.mark.parametrize("make", [CRNN, ConvLSTM, Both])
def test_every_criterion_scores_them(name: str, make: type[CRNN]) -> None:
    network = make(4).eval()
    plan = plan_for(network, SHAPE, ratio=0.5, criterion=name)
    assert {group.layer: len(group.removed) for group in plan.groups}["rnn"] > 0


def test_packed_sequences_can_be_traced() -> None:
    network = Packed(4).eval()
    apply_plan(network, SHAPE, plan_for(network, SHAPE, ratio=0.5))
    assert network.stem[0].out_channels == 6
    assert network(torch.randn(3, *SHAPE)).shape == (3, 4)


def test_more_than_one_layer_keeps_its_width() -> None:
    network = Deep(4).eval()
    apply_plan(network, SHAPE, plan_for(network, SHAPE, ratio=0.5))
    assert network.rnn.hidden_size == 10
    assert network.rnn.input_size == 12
    graph_reasons = preview(network, SHAPE, [plan_for(network, SHAPE, ratio=0.1)])["left_alone"]
    assert graph_reasons["rnn"] == "has 2 recurrent layers in one module"


@pytest.mark.parametrize("make", [CRNN, ConvLSTM, Both])
def test_the_penalty_pulls_at_all_entries_of_a_unit(make: type[CRNN]) -> None:
    network = make(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1)
    config = PruneConfig(ratio=0.5, sparsity="growing", start_epoch=1, ignore=["stem.*", "conv"])
    penalty = Penalty(network, SHAPE, config, until=1)
    with torch.no_grad():  # unit 0 is the strongest, so it is not pulled; the others are, equally
        network.rnn.bias_ih_l0[0] = 2
    penalty(torch.tensor(0)).backward()
    gates = 4 if isinstance(network.rnn, nn.LSTM) else 3
    for name, parameter in network.rnn.named_parameters():
        assert parameter.grad is not None
        rows = parameter.grad.view(gates, 10, *parameter.shape[1:])
        assert (rows[:, 1:] != 0).all(), name
        if not name.startswith("weight_hh"):
            assert (rows[:, 0] == 0).all(), name


@pytest.mark.parametrize("name", [n for n, c in CRITERIA.items() if c.needs_data])
@pytest.mark.parametrize("make", [CRNN, ConvLSTM])
def test_saliency_has_every_weight(name: str, make: type[CRNN]) -> None:
    network = make(4).eval()
    x, labels = torch.randn(3, *SHAPE), torch.tensor([0, 1, 3])
    values = saliency(name, network, x, labels, 3)
    twin = copy.deepcopy(network).double()
    nn.functional.cross_entropy(twin(x.double()), labels).backward()
    for key, parameter in twin.rnn.named_parameters():
        assert (values[f"rnn.{key}"] > 0).any()
        if name == "taylor":
            assert parameter.grad is not None
            expected = (parameter * parameter.grad).abs().float()
            assert torch.allclose(values[f"rnn.{key}"], expected, rtol=1e-4, atol=1e-9)
