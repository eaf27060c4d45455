"""A script: imports modules one by one and says how it went, in a process that may die of it.

Arguments: names of modules, or "gpus" for what torch sees of the GPUs. Each gives one line of JSON on
standard output: name, error (null or one line), found (of "gpus").
"""

import importlib
import json
import os
import sys
from typing import Any


def main() -> None:
    """Take one step for each argument; what packages print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        error, found = None, None
        try:
            found = gpus() if name == "gpus" else None
            if name != "gpus":
                importlib.import_module(name)
        except BaseException as problem:
            text = str(problem).strip() or "no reason given"
            error = f"{type(problem).__name__}: {text.splitlines()[0]}"
        answers.write(json.dumps({"name": name, "error": error, "found": found}) + "\n")
        answers.flush()


def gpus() -> dict[str, Any]:
    """Return the CUDA version of torch, its GPUs, and why there are none."""
    import torch

    reason = None
    if torch.version.cuda and not torch.cuda.is_available():
        try:
            torch.zeros(1, device="cuda")
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
    devices = [_gpu(torch, number) for number in range(torch.cuda.device_count())]
    return {"cuda": torch.version.cuda, "gpus": devices, "reason": reason}


def _gpu(torch: Any, number: int) -> dict[str, Any]:
    """Return name, bytes of memory and compute capability of a GPU, and whether it can add."""
    error = None
    try:
        assert torch.ones(2, device=f"cuda:{number}").sum().item() == 2
    except (RuntimeError, AssertionError) as problem:
        error = str(problem).splitlines()[0]
    about = torch.cuda.get_device_properties(number)
    capability = [about.major, about.minor]
    return {
        "name": about.name,
        "memory_bytes": about.total_memory,
        "capability": capability,
        "error": error,
    }


if __name__ == "__main__":
    main()
