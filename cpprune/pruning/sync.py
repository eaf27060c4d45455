"""One plan, made by rank 0, applied by all, and proof that all are equal afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from cpprune.distributed import check_ranks_equal, rank, share_json
from cpprune.pruning.plan import Plan
from cpprune.pruning.surgery import apply_plan
from shards.errors import InputError


def prune_on_all_ranks(
    network: nn.Module,
    input_shape: Sequence[int],
    make: Callable[[], Plan],
    device: torch.device,
) -> tuple[Plan, str]:
    """Let rank 0 make a plan and all ranks apply it to the unwrapped network.

    Args:
        network: unwrapped module, cut in place.
        input_shape: shape of one input, without the batch.
        make: makes the plan; called on rank 0 only.
        device: of this rank's tensors in collective calls.

    Returns:
        The plan and the fingerprint that all ranks share afterwards.

    Raises:
        InputError: on every rank, when rank 0 cannot make a plan.
        RuntimeError: naming the ranks whose network differs, before or after the cut.
    """
    check_ranks_equal(network, device, "before pruning")
    message: dict[str, object] = {}
    if rank() == 0:
        try:
            message = {"plan": make()}
        except InputError as error:
            message = {"error": str(error)}
    message = share_json(message, device)
    if "error" in message:
        raise InputError(str(message["error"]))
    plan = message["plan"]
    assert isinstance(plan, dict)
    apply_plan(network, input_shape, plan)
    return plan, check_ranks_equal(network, device, "after pruning")
