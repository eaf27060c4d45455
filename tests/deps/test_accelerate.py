"""Private interfaces of Accelerate."""

from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from cpprune.deps.accelerate import configure_ddp, reset_state, set_sync_gradients


@pytest.fixture
def accelerator(libraries):
    from accelerate import Accelerator

    reset_state()
    yield Accelerator(cpu=True, mixed_precision="bf16")
    reset_state()


def test_a_second_accelerator_may_have_another_precision(accelerator):
    from accelerate import Accelerator

    assert accelerator.mixed_precision == "bf16"
    reset_state()
    assert Accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"


@pytest.mark.parametrize("sync", [True, False])
def test_sync_gradients_is_what_the_backward_pass_reads(accelerator, sync):
    set_sync_gradients(accelerator, sync)
    assert accelerator.sync_gradients is sync
    assert accelerator.gradient_state.sync_gradients is sync


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("unused", [True, False])
def test_ddp_is_told_how_to_exchange_gradients(libraries, device, unused):
    accelerator = SimpleNamespace(device=torch.device(device))
    configure_ddp(accelerator, unused)
    expected = {"gradient_as_bucket_view": True}
    expected |= {"find_unused_parameters": True} if unused else {}
    known = signature(DistributedDataParallel).parameters
    if device == "cuda" and "batched_grad_copy" in known:
        expected["batched_grad_copy"] = True
    assert accelerator.ddp_handler.to_kwargs() == expected
    assert expected.keys() <= known.keys()
