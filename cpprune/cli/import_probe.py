"""A script that imports modules one by one, in a process that one of them may crash.

Arguments: names of modules, or "gpus" for what torch sees of the GPUs. For each, it prints one line of
JSON: name, error (null or one line), found (for "gpus").
"""

import importlib
import json
import os
import sys
from typing import Any


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
        print(json.dumps({"name": name, "error": error, "found": found}), file=answers, flush=True)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def gpus() -> dict[str, Any]:
    """Return the CUDA version of torch, its GPUs, and why there are none."""
    import torch

    cuda, reason = torch.version.cuda, None
    if cuda and not torch.cuda.is_available():
        reason = failure(torch, "cuda")
    found = []
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        found.append(
            {
                "name": gpu.name,
                "memory_bytes": gpu.total_memory,
                "capability": [gpu.major, gpu.minor],
                "error": failure(torch, f"cuda:{number}"),
            }
        )
    return {"cuda": cuda, "gpus": found, "reason": reason}


def failure(torch: Any, device: str) -> str | None:
    """Return why a device cannot add two numbers, or None if it can."""
    try:
        assert torch.ones(2, device=device).sum().item() == 2, "1 + 1 is not 2"
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return None


if __name__ == "__main__":
    main()
