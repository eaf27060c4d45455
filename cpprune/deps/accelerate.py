"""What is used of Accelerate beyond its documented interface."""

from __future__ import annotations

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


def set_sync_gradients(accelerator: Accelerator, sync: bool) -> None:
    """Say whether the next backward pass is the last of a step.

    Accelerate hands this to DeepSpeed's engine, which reduces gradients and steps by it. The property is
    documented, its setter is not. The documented way, `accumulate()`, counts micro-batches by itself.
    """
    accelerator.sync_gradients = sync
