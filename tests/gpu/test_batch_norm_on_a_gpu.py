"""Batch normalisation over processes on a GPU, in a group of one, beside torch's own in float64."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cpprune.training import batch_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICE, BACKEND = "cuda", "nccl"


@pytest.fixture
def group():
    dist.init_process_group(BACKEND, rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def computed(x, d_y, normalise):
    x = x.clone().requires_grad_()
    weight = torch.tensor([0.5, -2.0, 1.5], device=DEVICE, dtype=torch.float64).requires_grad_()
    bias = torch.tensor([1.0, 0.0, -3.0], device=DEVICE, dtype=torch.float64).requires_grad_()
    y = normalise(x, weight, bias)
    y.backward(d_y.to(y.dtype))
    return [t.detach().double() for t in (y, x.grad, weight.grad, bias.grad)]


@pytest.mark.parametrize("rows", [6, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format], ids=str)
def test_it_is_torchs_own(group, dtype, order, rows):
    generator = torch.Generator().manual_seed(0)
    x, d_y = (torch.randn(rows, 3, 8, 5, generator=generator) * 3 + 7 for _ in range(2))
    x, d_y = (t.to(DEVICE, dtype, memory_format=order) for t in (x, d_y))
    exact = computed(
        x.double(),
        d_y,
        lambda x, w, b: nn.functional.batch_norm(x, None, None, w, b, True, 0.0, 1e-3),
    )
    running = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
    found = computed(
        *(x, d_y),
        lambda x, w, b: batch_norm._batch_norm(x, *running, w.float(), b.float(), True, 0.5, 1e-3),
    )
    values = x.double().transpose(0, 1).reshape(3, -1)
    for own, of_batch, first in zip(running, (values.mean(1), values.var(1)), (0, 1), strict=True):
        assert (own.double() - (first + of_batch) / 2).abs().max() < 1e-4
    tolerance = 1e-4 if dtype == torch.float32 else 2**-7
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() < tolerance * max(1, other.abs().max())
