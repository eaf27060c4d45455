"""One plan, made by rank 0, applied by all, and proof that all are equal afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpprune.distributed.collectives import check_ranks_equal, share_json
from cpprune.distributed.process_group import rank
from cpprune.pruning.plan import Plan
from cpprune.pruning.surgery import apply_plan, carry, kept_entries
from shards.errors import InputError


@dataclass(frozen=True)
class Cut:
    """What came of a pruning event.

    Attributes:
        plan: what was cut.
        fingerprint: of the network, the same on all ranks.
        moments: the optimizer's tensors of what was kept.
    """

    plan: Plan
    fingerprint: str
    moments: Mapping[str, Tensor]


def prune_on_all_ranks(
    network: nn.Module,
    input_shape: Sequence[int],
    make: Callable[[], Plan],
    moments: Mapping[str, Tensor],
    device: torch.device,
) -> Cut:
    """Let rank 0 make a plan and all ranks apply it to the unwrapped network.

    Args:
        network: unwrapped module, cut in place.
        input_shape: shape of one input, without the batch.
        make: makes the plan; called on rank 0 only.
        moments: the optimizer's tensors by "parameter/moment", to be cut alike; may be empty.
        device: of this rank's tensors in collective calls.

    Raises:
        InputError: on every rank, when rank 0 cannot make a plan.
        InputError: naming the ranks whose network differs, before or after the cut.
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
    if moments:
        moments = carry(moments, kept_entries(network, input_shape, plan))
    apply_plan(network, input_shape, plan)
    return Cut(plan, check_ranks_equal(network, device, "after pruning"), moments)
