"""Joining and leaving the process group."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from cpprune.distributed import accelerate_settings, rendezvous
from cpprune.distributed import deepspeed as zero
from shards.errors import InputError
from shards.launcher import Launch, only, read_launch

if TYPE_CHECKING:
    from accelerate import Accelerator


# dtype of autocast by precision
AUTOCAST: dict[str, torch.dtype | None] = {
    "no": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


YEAR = 366 * 24 * 3600

# What gloo and NCCL say when another process is gone.
LOST = (
    *("onnection closed by peer", "onnection reset by peer", "onnection refused"),
    *("Timed out waiting", "Broken pipe", "remote process exited"),
)


def start(launch: Launch, precision: str, clip_norm: float = 0.0) -> Accelerator:
    """Join the process group that a launcher describes and return the Accelerator.

    Without a GPU, several processes talk over gloo.

    Args:
        launch: which process of how many this is; the environment says the same.
        precision: no, bf16 or fp16.
        clip_norm: largest norm of the gradient, which DeepSpeed has to know in advance; 0 is off.

    Raises:
        InputError: the environment asks for more processes than there are, or for a precision that
            this device has not.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("train.precision=fp16 needs a GPU: use bf16 or no")

    from datetime import timedelta

    from accelerate import Accelerator, InitProcessGroupKwargs

    with redirect_stdout(sys.stderr):  # DeepSpeed prints
        plugin = zero.make_plugin(precision, clip_norm) if zero.asked_for() else None
    if plugin is not None and not launch.variables:
        raise InputError(
            f"{zero.SWITCH} asks for DeepSpeed, but no launcher has started this process: use "
            "`accelerate launch --config_file launch/accelerate/deepspeed_zero2.yaml`, or unset it"
        )
    cpu = not torch.cuda.is_available()
    # Some of cuDNN's convolutions add in any order; a run that goes on has to find the same bits.
    torch.backends.cudnn.deterministic = True
    # Nor may NCCL sum in another order where a collective is part of a CUDA graph.
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    timeout = timedelta(seconds=timeout_seconds())
    # Accelerate finds the backend by itself, but not for DeepSpeed.
    backend = "gloo" if cpu and plugin is not None else None
    group = InitProcessGroupKwargs(backend=backend, timeout=timeout)
    try:
        if launch.world_size > 1:
            rendezvous.join(launch.rank, launch.world_size, timeout)
        with redirect_stdout(sys.stderr):
            accelerator = Accelerator(
                # Without this, several CPU processes would each believe to be the only one.
                cpu=cpu and plugin is None,
                # DeepSpeed would cast the weights; autocast, which the engine sees to, is enough.
                mixed_precision=precision if plugin is None else "no",
                deepspeed_plugin=plugin,
                step_scheduler_with_optimizer=False,
                kwargs_handlers=[group],
            )
    except dist.DistError as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"the {launch.world_size} processes of WORLD_SIZE did not all join ({first}): start all of "
            "them with `accelerate launch` or `torchrun`"
        ) from None
    if (there := accelerator.num_processes) != launch.world_size:
        raise InputError(
            f"WORLD_SIZE is {launch.world_size}, but {there} process(es) joined: start with "
            "`accelerate launch --multi_gpu --num_processes N` or `torchrun --nproc_per_node N`"
        )
    return accelerator


@contextmanager
def joined(precision: str, clip_norm: float = 0.0) -> Iterator[Accelerator]:
    """Join the process group for the length of a block; see `start`.

    Libraries find in the environment what the process group is, and nothing that was left over.
    """
    try:
        launch = read_launch()
        accelerate_settings.refuse_what_cannot_be_had()
        values = {"train.precision": precision, "train.clip_norm": str(clip_norm)}
        for note in (launch.note, accelerate_settings.not_taken(values)):
            if note and launch.rank == 0:
                print(f"cpprune: {note}", file=sys.stderr)
        with only(launch), accelerate_settings.hidden():
            yield start(launch, precision, clip_norm)
        if world_size() > 1:
            dist.barrier()  # nobody leaves while another still waits for its last message
    except (dist.DistError, RuntimeError) as error:
        if world_size() > 1 and any(sign in str(error) for sign in LOST):
            raise InputError(
                f"lost the other processes ({str(error).splitlines()[0][:120]}): see what they say; the "
                "same command goes on from the last checkpoint"
            ) from None
        raise
    finally:
        finish()


def finish() -> None:
    """Leave the process group, if there is one."""
    rendezvous.leave()
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def timeout_seconds() -> int:
    """Return how long a rank waits for the others, as CPPRUNE_TIMEOUT_SECONDS sets it.

    Raises:
        InputError: it is no number of seconds between 1 and a year.
    """
    text = os.environ.get("CPPRUNE_TIMEOUT_SECONDS") or "600"
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= YEAR and len(text) < 9):
        raise InputError(
            f"CPPRUNE_TIMEOUT_SECONDS={text!r} in the environment: must be a number from 1 to {YEAR}"
        )
    return int(text)
