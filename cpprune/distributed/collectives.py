"""Collective operations on JSON values and tensors; checks that all ranks hold the same network."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpprune.distributed.process_group import rank, world_size
from cpprune.models.fingerprint import fingerprint
from shards.errors import UserError

T = TypeVar("T")


def broadcast_json(value: T, device: torch.device) -> T:
    """Return rank 0's value on every rank; the values of the other ranks are ignored."""
    if world_size() == 1:
        return value
    payload = json.dumps(value).encode() if rank() == 0 else b""
    length = torch.tensor([len(payload)], device=device)
    dist.broadcast(length, 0)
    text = torch.zeros(int(length.item()), dtype=torch.uint8, device=device)
    if rank() == 0:
        text.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    dist.broadcast(text, 0)
    received: T = json.loads(bytes(text.cpu().numpy()))
    return received


def all_gather_json(value: T, device: torch.device) -> list[T]:
    """Return the values of all ranks in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    longest = int(all_reduce_max(torch.tensor([len(payload)], device=device)).item())
    text = torch.full((1, longest), ord(" "), dtype=torch.uint8, device=device)
    text[0, : len(payload)] = payload.to(device)
    return [json.loads(bytes(row)) for row in all_gather_rows(text, world_size()).cpu().numpy()]


def run_on_rank_0(function: Callable[[], object], device: torch.device) -> None:
    """Call a function that may fail, such as one that writes a file, on rank 0; all ranks see a failure.

    Raises:
        UserError: on every rank, if it failed on rank 0.
    """
    message = None
    if rank() == 0:
        try:
            function()
        except OSError as error:
            message = (
                f"{error.filename or 'a file of the run'}: cannot be written ({error.strerror}); make "
                "room or choose another --run; the last checkpoint is whole, and the same command goes "
                "on from it"
            )
        except UserError as error:
            message = str(error)
    message = broadcast_json(message, device)
    if message is not None:
        raise UserError(message)


def all_gather_rows(rows: Tensor, total: int) -> Tensor:
    """Return the rows of all ranks in rank order, on every rank.

    Args:
        rows: rows of this rank, [n, …]. Ranks hold slices of `total` rows that differ by at most one in
            length, as `shards.order.rank_slice` cuts them.
        total: sum of n over all ranks.

    Returns:
        [total, …].
    """
    world = world_size()
    if world == 1:
        return rows
    if total % world == 0:
        return all_gather_equal(rows).flatten(0, 1)
    longest = -(-total // world)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    counts = [(total * (r + 1)) // world - (total * r) // world for r in range(world)]
    parts = zip(all_gather_equal(padded), counts, strict=True)
    return torch.cat([part[:count] for part, count in parts])


def all_gather_equal(own: Tensor) -> Tensor:
    """Return the tensors of all ranks in rank order, on every rank: [ranks, …].

    Args:
        own: this rank's, of the same shape on every rank.
    """
    world = world_size()
    ranks = own.new_empty(world * own.numel())
    # torch 2.14 has renamed it; versions before know the old name alone.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(ranks, own.reshape(-1))
    return ranks.view(world, *own.shape)


def broadcast(values: Tensor) -> Tensor:
    """Replace a tensor by rank 0's, of the same shape, and return it."""
    if world_size() > 1:
        dist.broadcast(values, 0)
    return values


def all_reduce_max(values: Tensor) -> Tensor:
    """Replace a tensor by its elementwise maximum over all ranks, and return it."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


@torch.no_grad()
def broadcast_buffers(network: nn.Module) -> None:
    """Copy rank 0's buffers, such as BatchNorm's running statistics, to every rank."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def check_ranks_equal(network: nn.Module, device: torch.device, when: str) -> str:
    """Check that all ranks hold this network with equal weights, and return its fingerprint.

    Raises:
        UserError: on every rank, naming the ranks whose network differs from rank 0's.
    """
    own = fingerprint(network)
    if world_size() > 1:
        row = torch.frombuffer(bytearray(bytes.fromhex(own)), dtype=torch.uint8).to(device)
        prints = all_gather_rows(row.unsqueeze(0), world_size())
        differing = [r for r in range(world_size()) if not torch.equal(prints[r], prints[0])]
        if differing:
            raise UserError(
                f"{when}: the network of rank {', '.join(map(str, differing))} differs from rank 0's: "
                "a process does not compute as the others do; the last checkpoint is whole"
            )
    return own
