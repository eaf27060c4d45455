"""Joining and leaving the process group."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from cpprune.deps.accelerate import reset_state
from cpprune.deps.torch import is_lost_peer
from cpprune.distributed import accelerate_settings, deepspeed, rendezvous
from shards.errors import UserError
from shards.launcher import Launch, only, read_launch
from shards.log import LOG

if TYPE_CHECKING:
    from accelerate import Accelerator


# dtype of autocast by precision
AUTOCAST: dict[str, torch.dtype | None] = {
    "no": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

YEAR_SECONDS = 366 * 24 * 3600


def start(launch: Launch, precision: str, clip_norm: float = 0.0) -> Accelerator:
    """Join the process group that a launcher describes and return the Accelerator.

    The backend is NCCL on GPUs, else gloo.

    Args:
        launch: rank and world size of this process, as the environment has them too.
        precision: no, bf16 or fp16.
        clip_norm: largest norm of the gradient, which DeepSpeed has to know in advance; 0 is off.

    Raises:
        UserError: not all processes have joined, or the device does not support the precision.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision=fp16 needs a GPU: use bf16 or no")

    from accelerate import Accelerator, InitProcessGroupKwargs

    with redirect_stdout(sys.stderr):  # DeepSpeed prints
        plugin = deepspeed.make_plugin(precision, clip_norm) if deepspeed.is_requested() else None
    if plugin is not None and not launch.variables:
        raise UserError(
            f"{deepspeed.SWITCH} asks for DeepSpeed, but no launcher has started this process: use "
            "`accelerate launch --config_file launch/accelerate/deepspeed_zero2.yaml`, or unset it"
        )
    cpu = not torch.cuda.is_available()
    # Some of cuDNN's convolutions sum in no fixed order; a resumed run has to reproduce every bit.
    torch.backends.cudnn.deterministic = True
    # Nor may NCCL sum in another order inside a CUDA graph.
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    timeout = timedelta(seconds=timeout_seconds())
    # Accelerate chooses the backend by itself, except for DeepSpeed.
    backend = "gloo" if cpu and plugin is not None else None
    group = InitProcessGroupKwargs(backend=backend, timeout=timeout)
    try:
        if launch.world_size > 1:
            rendezvous.join(launch.rank, launch.world_size, timeout)
        with redirect_stdout(sys.stderr):
            accelerator = Accelerator(
                # Without this, each of several CPU processes would take itself for the only one.
                cpu=cpu and plugin is None,
                # DeepSpeed would cast the weights; the training step runs under autocast instead.
                mixed_precision=precision if plugin is None else "no",
                deepspeed_plugin=plugin,
                step_scheduler_with_optimizer=False,
                kwargs_handlers=[group],
            )
    except dist.DistError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"the {launch.world_size} processes of WORLD_SIZE did not all join ({first}): start all of "
            "them with `accelerate launch` or `torchrun`"
        ) from None
    if (joined_processes := accelerator.num_processes) != launch.world_size:
        raise UserError(
            f"WORLD_SIZE is {launch.world_size}, but {joined_processes} process(es) joined: start with "
            "`accelerate launch --multi_gpu --num_processes N` or `torchrun --nproc_per_node N`"
        )
    return accelerator


@contextmanager
def joined(precision: str, clip_norm: float = 0.0) -> Iterator[Accelerator]:
    """Join the process group for the length of a block; see `start`.

    Inside the block, the environment describes the process group and holds no variables that an earlier
    launcher has left.
    """
    try:
        launch = read_launch()
        accelerate_settings.check_supported()
        values = {"train.precision": precision, "train.clip_norm": str(clip_norm)}
        for note in (launch.note, accelerate_settings.ignored_settings(values)):
            if note and launch.rank == 0:
                LOG.warning(note)
        with only(launch), accelerate_settings.hidden():
            yield start(launch, precision, clip_norm)
        if world_size() > 1:
            dist.barrier()  # no rank leaves while another waits for its last message
    except (dist.DistError, RuntimeError) as error:
        if world_size() > 1 and is_lost_peer(error):
            raise UserError(
                f"lost the other processes ({str(error).splitlines()[0][:120]}): see what they say; the "
                "same command goes on from the last checkpoint"
            ) from None
        raise
    finally:
        finish()


def finish() -> None:
    """Leave the process group, if there is one."""
    rendezvous.leave()
    reset_state()


def rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def timeout_seconds() -> int:
    """Return how long a rank waits for the others: CPPRUNE_TIMEOUT_SECONDS, by default 600.

    Raises:
        UserError: it is not a number of seconds from 1 to a year.
    """
    text = os.environ.get("CPPRUNE_TIMEOUT_SECONDS") or "600"
    if not (
        text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= YEAR_SECONDS and len(text) < 9
    ):
        raise UserError(
            f"CPPRUNE_TIMEOUT_SECONDS={text!r} in the environment: must be a number from 1 to "
            f"{YEAR_SECONDS}"
        )
    return int(text)
