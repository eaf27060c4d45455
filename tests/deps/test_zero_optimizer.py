"""Private interfaces of DeepSpeed. tests/distributed/test_deepspeed.py uses them on real processes."""

import pytest
import torch

from cpprune.deps.deepspeed import is_zero_optimizer


def test_an_optimizer_of_torch_is_no_zero_optimizer():
    assert not is_zero_optimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))


@pytest.mark.deepspeed
def test_the_zero_optimizer_has_what_is_used_of_it(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    import inspect

    stage = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    kind = stage.DeepSpeedZeroOptimizer
    assert "self.single_partition_of_fp32_groups = []" in inspect.getsource(kind.__init__)
    assert callable(kind._lazy_init_hp_params_optimizer_state)
