"""A trial step of a copy of the network: what training it takes, or why it cannot be trained."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.deps.torch import channels_last_corrupts, waits
from cpprune.distributed import deepspeed, process_group
from cpprune.distributed.process_group import AUTOCAST, world_size
from cpprune.models.artifact import Model
from cpprune.models.finite import not_finite
from cpprune.training.batch_norm import use_global_batch_norm
from cpprune.training.config import TrainConfig
from shards.errors import UserError, one_line
from shards.order import num_batches, rank_slice
from shards.random_stream import RandomStream

CONTAINERS = (list, dict, set, deque)


@dataclass(frozen=True)
class Traits:
    """How a network has to be trained.

    Attributes:
        layout: memory format of its weights and inputs: channels last unless it fails in that.
        why_contiguous: what is against channels last, or "".
        unused: names of the parameters that get no gradient.
        draws: whether it draws random numbers while it is trained, as dropout does.
        host: what a step of it asks of the host, so that it cannot be replayed as a CUDA graph; or "".
    """

    layout: torch.memory_format
    why_contiguous: str = ""
    unused: tuple[str, ...] = ()
    draws: bool = False
    host: str = ""

    def notes(self, device: torch.device, how: str) -> list[str]:
        """Return what the user should know, a line each.

        Args:
            device: of the training.
            how: `train.compile`.
        """
        lines = []
        if self.host and device.type == "cuda" and how == "auto":
            lines.append(f"steps are not captured as CUDA graphs: the network {self.host}")
        if self.why_contiguous:
            lines.append(f"{self.why_contiguous}: contiguous is used")
        if self.unused:
            more = f" and {len(self.unused) - 3} more" if len(self.unused) > 3 else ""
            lines.append(
                f"parameters that get no gradient are not trained: {', '.join(self.unused[:3])}{more}"
            )
        if self.draws and world_size() > 1:
            lines.append(
                "the network draws random numbers (dropout?), each process its own: the result depends "
                "on the number of processes"
            )
        return lines


def try_step(model: Model, train: TrainConfig, clips: int, device: torch.device) -> Traits:
    """Take forward and backward passes of a copy of the network. A collective operation.

    Args:
        model: front end and network, unwrapped; neither is changed.
        train: settings of the run.
        clips: in an epoch.
        device: of this rank.

    Raises:
        UserError: a pass fails, or the network does not return logits; the message says where.
    """
    rows = [_rows(train, clips, rank) for rank in range(world_size())]
    own = rows[process_group.rank()]
    usual = min(2, max(own))
    layouts, why_contiguous = [torch.channels_last, torch.contiguous_format], ""
    if deepspeed.is_requested():
        # It lays weights out in its own way, and takes none that lie otherwise.
        layouts = [torch.contiguous_format]
    elif device.type == "cpu" and channels_last_corrupts(model.network):
        layouts = [torch.contiguous_format]
        why_contiguous = "channels_last is faulty on this CPU for 1×1 convolutions with a stride"
    generators = random.getstate(), np.random.get_state()  # noqa: NPY002 - networks may draw from it
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cuda):
            for layout in layouts:
                seed_generators(device, 0)
                before = _states(device)
                try:
                    twin, host = _pass(model, train, layout, usual, device)
                    break
                except UserError:
                    if layout == layouts[-1]:
                        raise
                    why_contiguous = "the network cannot compute in channels_last"
            after = _states(device)
            drawn = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            if any(drawn[-2:]):
                host = "draws from the random numbers of Python or NumPy"
            if min(map(min, rows)) < 2:  # on every rank, or on none
                _try_short(model, train, layout, min(own), device)
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
    named = twin.named_parameters()
    unused = tuple(name for name, p in named if p.requires_grad and p.grad is None)
    return Traits(layout, why_contiguous, unused, any(drawn), host)


def seed_generators(device: torch.device, *entropy: int) -> None:
    """Seed every generator that a network on a device may draw from, by a function of these integers."""
    seed = int(RandomStream(*entropy).words(1)[0])
    # Every step does this: torch.manual_seed, which looks at all kinds of devices, takes far longer.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a network may use this one


def _rows(train: TrainConfig, clips: int, rank: int) -> set[int]:
    """Return how many clips a rank may have in a micro-batch."""
    found = set()
    last = clips - (num_batches(clips, train.batch_size) - 1) * train.batch_size
    for total in {min(train.batch_size, clips), last}:
        own = rank_slice(np.arange(total), rank, world_size())
        found |= {len(own[rows]) for rows in train.micro_batches(total, world_size())}
    return found


def _try_short(
    model: Model, train: TrainConfig, layout: torch.memory_format, rows: int, device: torch.device
) -> None:
    try:
        twin, _ = _pass(model, train, layout, rows, device)
        if wrong := not_finite(twin):
            raise UserError(f"{wrong[0]} is not finite afterwards")
    except UserError as error:
        raise UserError(
            f"the last batch of an epoch leaves a process {rows} clip(s), on which the network cannot "
            f"be trained ({error}): set train.drop_last=true, or another train.batch_size"
        ) from None


def _pass(
    model: Model, train: TrainConfig, layout: torch.memory_format, rows: int, device: torch.device
) -> tuple[nn.Module, str]:
    """Take a forward and a backward pass on `rows` random inputs.

    Returns:
        The copy of the network that took them, and what it asked of the host; see `Traits`.
    """
    try:
        twin = copy.deepcopy(model.network)
    except RuntimeError as error:
        raise UserError(f"the network cannot be copied ({one_line(error)})") from None
    twin.to(device, memory_format=layout)  # type: ignore[call-overload]
    twin.train()
    if train.global_batch_norm:
        use_global_batch_norm(twin)
    numbers = RandomStream(0).uniform(rows, *model.input_shape).astype(np.float32)
    x = torch.from_numpy(numbers).to(device).contiguous(memory_format=layout)
    dtype = AUTOCAST[train.precision]
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
    try:
        if device.type == "cuda":
            with torch.no_grad(), autocast:
                twin(x)  # what it changes once, such as a cache, a CUDA graph need not replay
        attributes = _attributes(twin)
        with autocast, waits(device) as waited:
            logits = twin(x)
        host = "waits for the GPU" if waited else ""
        if changed := attributes ^ _attributes(twin):
            host = f"changes an attribute of its own ({min(changed)[0]})"
        _check_logits(logits, rows, len(model.classes))
        labels = torch.zeros(rows, dtype=torch.int64, device=device)
        functional.cross_entropy(logits.float(), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    except UserError:
        raise
    except Exception as error:  # the network may be anyone's, and fail in any way
        raise UserError(
            f"a training step of the network fails on inputs {[rows, *model.input_shape]} "
            f"({one_line(error)})"
        ) from error
    return twin, host


def _attributes(network: nn.Module) -> set[tuple[str, bool | float | str]]:
    """Return the attributes of a network's layers: numbers, texts, and the lengths of containers."""
    return {
        (f"{name}.{key}".lstrip("."), len(value) if isinstance(value, CONTAINERS) else value)
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, *CONTAINERS))
    }


def _check_logits(logits: object, rows: int, num_classes: int) -> None:
    shape: Sequence[int] | str = type(logits).__name__
    if isinstance(logits, Tensor):
        shape = list(logits.shape)
    if shape != [rows, num_classes]:
        raise UserError(
            f"the network must return logits [{rows}, {num_classes}] in training, too, but returns "
            f"{shape}"
        )


def _states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    words = random.getstate()[1], np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
    return states + [torch.from_numpy(np.asarray(word, np.int64)) for word in words]
