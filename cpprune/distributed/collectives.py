"""Collective operations: values shared and gathered over ranks, and networks compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpprune.distributed.process_group import rank, world_size
from cpprune.models.fingerprint import fingerprint
from shards.errors import InputError


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
