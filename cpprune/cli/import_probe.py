"""A script that imports modules one by one, in a process that one of them may crash.

Arguments: names of modules, or "gpus" for what torch sees of the GPUs. For each, it prints an Answer
as one line of JSON.
"""

import importlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from types import ModuleType


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees; `error` is why it cannot add two numbers."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    error: str | None


@dataclass(frozen=True)
class Gpus:
    """The CUDA version of torch, its GPUs, and why there are none."""

    cuda: str | None
    gpus: list[Gpu]
    reason: str | None


@dataclass(frozen=True)
class Answer:
    """Why a module cannot be imported, or None; for "gpus", what was found."""

    name: str
    error: str | None
    found: Gpus | None = None


def main() -> None:
    """Answer each argument on standard output; what packages print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        error, found = None, None
        try:
            if name == "gpus":
                found = gpus()
            else:
                importlib.import_module(name)
        except BaseException as raised:
            error = f"{type(raised).__name__}: {first_line(raised) or 'no reason given'}"
        print(json.dumps(asdict(Answer(name, error, found))), file=answers, flush=True)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def gpus() -> Gpus:
    """Return the CUDA version of torch, its GPUs, and why there are none."""
    import torch

    cuda, reason = torch.version.cuda, None
    if cuda and not torch.cuda.is_available():
        reason = failure(torch, "cuda")
    found = []
    for number in range(torch.cuda.device_count()):
        gpu, error = torch.cuda.get_device_properties(number), failure(torch, f"cuda:{number}")
        found.append(Gpu(gpu.name, gpu.total_memory, (gpu.major, gpu.minor), error))
    return Gpus(cuda, found, reason)


def failure(torch: ModuleType, device: str) -> str | None:
    """Return why a device cannot add two numbers, or None if it can."""
    try:
        assert torch.ones(2, device=device).sum().item() == 2, "1 + 1 is not 2"
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return None


if __name__ == "__main__":
    main()
