"""Private interfaces of Accelerate."""

import pytest

from cpprune.deps.accelerate import reset_state, set_sync_gradients


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
