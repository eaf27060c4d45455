"""What is used of Accelerate beyond its documented interface."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


def reset_state() -> None:
    """Forget the process group and the settings of an earlier `Accelerator`.

    Accelerate keeps them in shared state that outlives the object; a later run of the same process, with
    other ranks or another precision, would silently get the earlier one's. Accelerate's own tests call
    this private method. Without it, a process can make one Accelerator only.
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def configure_ddp(accelerator: Accelerator, unused: bool) -> None:
    """Choose how DistributedDataParallel exchanges gradients: in place, and on GPUs in few kernels.

    Handlers of an Accelerator are documented as arguments, not as attributes. Whether the network has
    unused parameters is only known once its device is, which the Accelerator chooses. Nor does the
    handler have `batched_grad_copy`, with which torch copies gradients into a bucket all at once (since
    2.14); it then divides, where it otherwise multiplies by an inverse, which may round differently.

    Args:
        accelerator: before it wraps the network.
        unused: whether to look in every step for parameters that get no gradient.
    """
    from accelerate import DistributedDataParallelKwargs
    from torch.nn.parallel import DistributedDataParallel

    @dataclass
    class Handler(DistributedDataParallelKwargs):  # type: ignore[misc]
        batched_grad_copy: bool = False

    known = "batched_grad_copy" in signature(DistributedDataParallel).parameters
    accelerator.ddp_handler = Handler(
        find_unused_parameters=unused,
        gradient_as_bucket_view=True,
        batched_grad_copy=known and accelerator.device.type == "cuda",
    )


def set_sync_gradients(accelerator: Accelerator, sync: bool) -> None:
    """Say whether the next backward pass is the last of a step.

    Accelerate hands this to DeepSpeed's engine, which reduces gradients and steps by it. The property is
    documented, its setter is not. The documented way, `accumulate()`, counts micro-batches by itself.
    """
    accelerator.sync_gradients = sync
