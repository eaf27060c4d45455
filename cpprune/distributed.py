"""Several processes as one: starting them, letting them agree, and comparing them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpprune import accelerate_settings, rendezvous, zero
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
                # DeepSpeed would cast the weights; autocast is enough, and the stepper sees to it.
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


def share_json(value: Any, device: torch.device) -> Any:
    """Return rank 0's value on every rank; what the others pass is not looked at."""
    if world_size() == 1:
        return value
    payload = json.dumps(value).encode() if rank() == 0 else b""
    length = torch.tensor([len(payload)], device=device)
    dist.broadcast(length, 0)
    text = torch.zeros(int(length.item()), dtype=torch.uint8, device=device)
    if rank() == 0:
        text.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    dist.broadcast(text, 0)
    return json.loads(bytes(text.cpu().numpy()))


def gather_json(value: Any, device: torch.device) -> list[Any]:
    """Return the values of all ranks in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    longest = int(largest(torch.tensor([len(payload)], device=device)).item())
    text = torch.full((1, longest), ord(" "), dtype=torch.uint8, device=device)
    text[0, : len(payload)] = payload.to(device)
    return [json.loads(bytes(row)) for row in gather_rows(text, world_size()).cpu().numpy()]


def on_rank_0(do: Callable[[], object], device: torch.device) -> None:
    """Do something on rank 0 that may fail, such as writing a file, and let all ranks know.

    Raises:
        InputError: on every rank, when it failed on rank 0.
    """
    message = None
    if rank() == 0:
        try:
            do()
        except OSError as error:
            message = (
                f"{error.filename or 'a file of the run'}: cannot be written ({error.strerror}); make "
                "room or choose another --run; the last checkpoint is whole, and the same command goes "
                "on from it"
            )
        except InputError as error:
            message = str(error)
    message = share_json(message, device)
    if message is not None:
        raise InputError(message)


def gather_rows(rows: Tensor, total: int) -> Tensor:
    """Return the rows of all ranks in rank order, on every rank.

    Args:
        rows: this rank's, [n, …]; ranks hold slices of `total` rows that differ by at most one in
            length, as `shards.order.rank_slice` cuts them.
        total: sum of all ranks' n.
    """
    world = world_size()
    if world == 1:
        return rows
    longest = -(-total // world)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    counts = [(total * (r + 1)) // world - (total * r) // world for r in range(world)]
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def largest(values: Tensor) -> Tensor:
    """Return the elementwise maximum over all ranks."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


@torch.no_grad()
def share_buffers(network: nn.Module) -> None:
    """Give every rank rank 0's buffers, such as BatchNorm's running statistics."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def fingerprint(network: nn.Module) -> str:
    """Return the sha256 of every name, shape, dtype and byte of parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def structure(network: nn.Module) -> str:
    """Return the sha256 of every name and shape of parameters and buffers."""
    text = "\n".join(f"{name} {tuple(t.shape)}" for name, t in network.state_dict().items())
    return hashlib.sha256(text.encode()).hexdigest()


def check_ranks_equal(network: nn.Module, device: torch.device, when: str) -> str:
    """Raise InputError, naming the ranks, unless all hold this network with equal weights.

    Returns:
        The fingerprint that all ranks agree on.
    """
    own = fingerprint(network)
    if world_size() > 1:
        row = torch.frombuffer(bytearray(bytes.fromhex(own)), dtype=torch.uint8).to(device)
        prints = gather_rows(row.unsqueeze(0), world_size())
        differing = [r for r in range(world_size()) if not torch.equal(prints[r], prints[0])]
        if differing:
            raise InputError(
                f"{when}: the network of rank {', '.join(map(str, differing))} differs from rank 0's: "
                "a process does not compute as the others do; the last checkpoint is whole"
            )
    return own


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
