"""`cpprune doctor`: what this machine has, and what would fail on it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from cpprune.commands.arguments import OneLineParser

REQUIRED = (
    "torch",
    "torchaudio",
    "torch-pruning",
    "accelerate",
    "webdataset",
    "jsonargparse",
    "safetensors",
    "soundfile",
    "soxr",
    "numpy",
    "pyarrow",
    "torchinfo",
    "torchmetrics",
    "rich",
)
# extra → (module to look for, what it is for)
EXTRAS = {
    "dali": ("nvidia.dali", "DALI front end"),
    "deepspeed": ("deepspeed", "DeepSpeed ZeRO"),
    "wandb": ("wandb", "tracking with Weights & Biases"),
    "sweep": ("optuna", "sweeps"),
    "export": ("onnx", "export to ONNX"),
    "report": ("matplotlib", "plots"),
}


def doctor(argv: list[str]) -> int:
    """Print what there is; exit status 1 when something needed would fail."""
    parser = OneLineParser(
        "cpprune doctor", description="What this machine has, what would fail, and how to mend it."
    )
    arguments = parser.parse_args(argv)
    found = examine()
    if arguments.json:
        print(json.dumps(found))
    else:
        _print(found)
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """Return machine, packages, extras, gpus and problems (what fails, and the remedy)."""
    problems = []
    packages = {name: _version(name) for name in REQUIRED}
    problems += [
        f"{name} is not installed: pip install {name}" for name, v in packages.items() if v is None
    ]
    gpus: list[str] = []
    try:
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        import torchaudio  # noqa: F401 - refuses a torch built for another CUDA when imported
    except (ImportError, OSError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        problems.append(
            f"torch and torchaudio do not work together ({first}): pip install 'torch>=2.11,<2.15' "
            "'torchaudio>=2.11,<2.12', both from the same index"
        )
    if not gpus and shutil.which("nvidia-smi"):
        problems.append("there is a GPU driver, but torch sees no GPU: install torch with CUDA")
    free = shutil.disk_usage(".").free
    if free < 2**30:
        problems.append(f"only {free / 2**20:.0f} MiB are free in this folder: make room")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "free_disk_bytes": free,
        "gpus": gpus,
        "packages": packages,
        "extras": {name: _importable(module) for name, (module, _) in EXTRAS.items()},
        "problems": problems,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _print(found: dict[str, Any]) -> None:
    print(f"Python {found['python']} on {found['platform']}")
    print(
        f"{found['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB of memory, "
        f"{found['free_disk_bytes'] / 2**30:.0f} GiB free here"
    )
    print("GPUs: " + (", ".join(found["gpus"]) or "none; training runs on the CPU"))
    print(
        "packages: "
        + ", ".join(f"{name} {v or 'missing'}" for name, v in found["packages"].items())
    )
    for name, there in found["extras"].items():
        purpose = EXTRAS[name][1]
        print(f"  [{name}] {purpose}: " + ("there" if there else f"pip install 'cpprune[{name}]'"))
    for problem in found["problems"]:
        print(f"problem: {problem}")
    if not found["problems"]:
        print("nothing here would fail")
