"""What a weight matters for the loss, against gradients of the mean loss taken here."""

import copy
from collections.abc import Callable

import pytest
import torch
from networks import SHAPE, plan_for
from torch import Tensor, nn
from torch.nn import functional

from cpprune.models.fingerprint import fingerprint
from cpprune.pruning.importance import ExactSum, saliency

Make = Callable[..., nn.Module]


@pytest.fixture
def clips() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, *SHAPE, generator=generator), torch.tensor([0, 3, 9, 3, 1, 7])


def test_taylor_is_weight_times_gradient(make_network: Make, clips: tuple[Tensor, Tensor]) -> None:
    network = make_network(widths=[4, 5, 6])
    twin = copy.deepcopy(network).double().eval()
    functional.cross_entropy(twin(clips[0].double()), clips[1]).backward()
    before = fingerprint(network)
    measured = saliency("taylor", network, *clips, total=6)
    assert fingerprint(network) == before
    assert network.training
    assert all(p.grad is None for p in network.parameters())
    assert measured.keys() == dict(network.named_parameters()).keys()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        expected = (parameter.detach() * parameter.grad).abs()
        torch.testing.assert_close(measured[name].double(), expected, rtol=1e-6, atol=1e-9)


def test_hessian_is_half_the_squares(make_network: Make, clips: tuple[Tensor, Tensor]) -> None:
    network = make_network(widths=[4, 5, 6])
    twin = copy.deepcopy(network).double().eval()
    measured = saliency("hessian", network, *clips, total=6)
    sums = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for x, label in zip(*clips, strict=True):
        twin.zero_grad()
        functional.cross_entropy(twin(x[None].double()), label[None]).backward()
        for name, parameter in twin.named_parameters():
            assert parameter.grad is not None
            sums[name] += parameter.grad**2
    for name, parameter in twin.named_parameters():
        expected = parameter.detach() ** 2 * sums[name] / 12
        torch.testing.assert_close(measured[name].double(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_channels_are_scored_by_their_saliency(
    criterion: str, make_network: Make, clips: tuple[Tensor, Tensor]
) -> None:
    network = make_network(base_channels=8)
    network.requires_grad_(False)  # also a frozen network is measured
    measured = saliency(criterion, network, *clips, total=6)
    before = fingerprint(network)
    plan = plan_for(network, criterion=criterion, ratio=0.5, saliency=measured)
    assert fingerprint(network) == before
    assert not any(p.requires_grad for p in network.parameters())
    for entry in plan.groups:
        block = entry.layer.removesuffix(".conv1")
        if block == entry.layer:
            continue
        score = measured[f"{block}.conv1.weight"].double().sum((1, 2, 3))
        score += measured[f"{block}.bn1.weight"].double()
        score += measured[f"{block}.conv2.weight"].double().sum((0, 2, 3))
        best = score.argsort(descending=True)[: entry.width // 2]
        assert entry.keep == sorted(best.tolist())


class Idle(nn.Module):
    """A network with a parameter that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_what_the_loss_does_not_depend_on_matters_nothing() -> None:
    measured = saliency("taylor", Idle(), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), total=5)
    assert not measured["idle.weight"].any()
    assert measured["used.weight"].any()


def test_sums_do_not_depend_on_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(300, 7, generator=generator, dtype=torch.float64)
    numbers *= 10.0 ** torch.randint(-12, 3, numbers.shape, generator=generator)
    forth, back = ExactSum(numbers[0]), ExactSum(numbers[0])
    for row in numbers:
        forth.add(row)
    for row in numbers.flip(0):
        back.add(row)
    assert torch.equal(forth.over_ranks(), back.over_ranks())
    assert not torch.equal(sum(numbers), sum(numbers.flip(0)))  # as plain sums do
    torch.testing.assert_close(forth.over_ranks(), numbers.sum(0), rtol=1e-12, atol=1e-20)
    for wrong in (torch.nan, torch.inf, 2.0**21):
        broken = ExactSum(numbers[0])
        broken.add(torch.full((7,), wrong, dtype=torch.float64))
        assert broken.over_ranks().isnan().all()
