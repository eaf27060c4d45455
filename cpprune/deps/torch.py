"""What is used of torch beyond its documented interface."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
else:
    from torch.distributed import PrefixStore, Store, TCPStore

__all__ = ["AnyBatchNorm", "AnyConv", "AnyNorm", "PrefixStore", "Store", "TCPStore"]

# The stores are documented, but torch's stubs do not export them from torch.distributed: mypy has to be
# shown where they are defined. Once they are exported, import them from torch.distributed alone.

# Base classes of all convolutions, transposed ones too; of BatchNorm1d, 2d, 3d and SyncBatchNorm; and of
# those and InstanceNorm. Without them, a tuple of the public classes does, but misses new ones.
AnyConv = _ConvNd
AnyBatchNorm = _BatchNorm
AnyNorm = _NormBase

# What gloo, NCCL and the TCP store say when another process has ended.
LOST_PEER = (
    *("onnection closed by peer", "onnection reset by peer", "onnection refused"),
    *("Timed out waiting", "Broken pipe", "remote process exited"),
)


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective operation failed because another process has ended.

    Backends raise RuntimeError with a text and no code. A text that is not recognised ends as a
    traceback instead of as one line: add it to `LOST_PEER`.
    """
    return any(text in str(error) for text in LOST_PEER)


def add_one_to_each_(counters: list[Tensor]) -> None:
    """Add 1 to tensors of integers, in one kernel; a loop of `add_` is the same, one kernel a tensor."""
    torch._foreach_add_(counters, 1)


def copy_each_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, in one kernel per device and dtype.

    `torch._foreach_copy_` is private; a loop of `copy_` is the same, one kernel a tensor.
    """
    torch._foreach_copy_(list(targets), list(sources))


def lerp_each_(targets: list[Tensor], sources: list[Tensor], weight: Tensor) -> None:
    """Move each target towards its source: target += weight · (source − target), in few kernels.

    `torch._foreach_*` are private; a loop of `sub`, `mul_` and `add_` gives the same bits.

    Args:
        targets: floating-point tensors, changed in place.
        sources: of the same shapes.
        weight: a scalar tensor on their device, so that a CUDA graph reads it anew at each replay.
    """
    differences = torch._foreach_sub(sources, targets)
    torch._foreach_mul_(differences, weight)
    torch._foreach_add_(targets, differences)


def skip_next_step_if(optimizer: torch.optim.Optimizer, not_finite: Tensor) -> None:
    """Make the next `step` of a fused optimizer change nothing if a tensor says so, without a wait.

    The attributes `grad_scale` and `found_inf` are how `torch.amp.GradScaler` tells this to fused and
    capturable optimizers. Without them the host has to wait for the tensor and leave `step` out.

    Args:
        optimizer: with `fused=True`, or one that ignores the attributes.
        not_finite: a scalar tensor; the step is skipped if it is not 0.
    """
    vars(optimizer).update(grad_scale=None, found_inf=not_finite.float())


def stop_buffer_broadcast(wrapped: DistributedDataParallel) -> None:
    """Let DistributedDataParallel broadcast no buffers at the start of a forward pass from now on.

    The argument of the same name also keeps them from being made equal at first, and newer versions
    deprecate it in favour of `forward_sync_buffers`, which older ones lack; the attribute does the same
    in all of them.
    """
    wrapped.broadcast_buffers = False


def make_inductor_deterministic() -> None:
    """Let Inductor choose kernels by rule, not by measurement: a resumed run is equal to the bit.

    TORCHINDUCTOR_DETERMINISTIC=0 leaves it to measurement. The settings of Inductor are private; a
    torch without this one chooses kernels as before.
    """
    from torch._inductor import config

    if hasattr(config, "deterministic"):
        config.deterministic = os.environ.get("TORCHINDUCTOR_DETERMINISTIC") != "0"


def channels_last_corrupts(network: nn.Module) -> bool:
    """Return whether training a network on this CPU in channels_last would write outside of its memory.

    The gradient of a 1×1 convolution with a stride does so in oneDNN's kernels for AVX2 (seen in oneDNN
    3.12, torch 2.14); those for AVX-512 are others.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2" and any(
        isinstance(module, AnyConv) and set(module.kernel_size) == {1} and set(module.stride) != {1}
        for module in network.modules()
    )


@contextmanager
def inductor_cache(folder: Path) -> Iterator[None]:
    """Context in which Inductor keeps what it compiles in a folder.

    Even in its deterministic mode, two processes that compile the same network may get kernels that
    round differently; from the folder they get the same. TORCHINDUCTOR_CACHE_DIR, if set, is used
    instead. Inductor itself sets it to `default_cache_dir`, which is private.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    name = "TORCHINDUCTOR_CACHE_DIR"
    if os.environ.get(name, default_cache_dir()) != default_cache_dir():
        yield
        return
    os.environ[name] = str(folder.absolute())
    try:
        yield
    finally:
        os.environ[name] = default_cache_dir()


@contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Context that collects what waits for a GPU in it: texts of torch's own warnings of that.

    What it warns of is not complete: torch documents `set_sync_debug_mode` as a beta.
    """
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    texts = [str(warning.message) for warning in caught]
    found += [text for text in texts if "called a synchronizing CUDA operation" in text]


class Operators(TorchDispatchMode):
    """Context that reports every operator (torch.ops.aten) that runs in it; composite ones in parts.

    `torch.utils.flop_counter` is made in the same way, and is all that is public of it. It gives one
    number for an operator, not the sizes that it is a product of, and knows fewer operators.

    Args:
        seen: called with the operator's name, such as "mm", its arguments and its result.
    """

    def __init__(self, seen: Callable[[str, Sequence[Any], object], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is NotImplemented:
            result = func(*args, **(kwargs or {}))
            self.seen(func.overloadpacket.__name__, args, result)
        return result


def write_hparams(writer: Any, values: Mapping[str, object], metrics: Iterable[str]) -> None:
    """Write hyper-parameters to the event file of a `SummaryWriter`.

    The documented `add_hparams` writes them to a new run beside that of the writer; the function that it
    calls is not documented. Without it, write them as a text.

    Args:
        writer: a SummaryWriter.
        values: by name; written as text unless they are numbers or texts.
        metrics: names of the scalars to show beside them.
    """
    from torch.utils.tensorboard.summary import hparams

    shown = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in values.items()
    }
    for summary in hparams(shown, dict.fromkeys(metrics)):  # type: ignore[no-untyped-call]
        writer.file_writer.add_summary(summary)


def is_part(x: Tensor) -> bool:
    """Return whether a tensor is a view of one of another shape, which holds what is written into it."""
    return x._is_view() and x._base is not None and x._base.shape != x.shape
