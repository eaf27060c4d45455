"""What is used of DeepSpeed beyond its documented interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer


def is_zero_optimizer(optimizer: object) -> bool:
    """Whether this is the optimizer of ZeRO-1 or ZeRO-2 that DeepSpeed puts around one of torch.

    By its flat partitions, so that DeepSpeed need not be imported, nor be installed.
    """
    return hasattr(optimizer, "single_partition_of_fp32_groups")


def allocate_state(optimizer: DeepSpeedZeroOptimizer) -> None:
    """Make a ZeRO optimizer allocate its state, by a step with gradients and learning rates of zero.

    `safe_set_full_optimizer_state`, which is documented, needs a state to write to, and nothing public
    allocates it before the first real step. Then `_lazy_init_hp_params_optimizer_state`, which DeepSpeed
    calls after a first step, tells each parameter where its part of the state lies.
    """
    inner = optimizer.optimizer
    groups = list(zip(inner.param_groups, optimizer.single_partition_of_fp32_groups, strict=True))
    rates = [group["lr"] for group, _ in groups]
    for group, partition in groups:
        group["lr"] = 0.0
        partition.grad = torch.zeros_like(partition)
    inner.step()
    for (group, partition), rate in zip(groups, rates, strict=True):
        group["lr"] = rate
        partition.grad = None
    optimizer._lazy_init_hp_params_optimizer_state()
