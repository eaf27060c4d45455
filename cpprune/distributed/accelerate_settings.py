"""Settings of `accelerate launch`: refused, ignored with a note, or hidden from Accelerate.

The launcher passes them to Accelerate as environment variables. How a run trains is decided by the run's
own settings alone: only DeepSpeed's are left for Accelerate to see, and a note names those that differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from shards.errors import UserError

# Accelerate's words, from its `str_to_bool`.
YES, NO = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0", "")
REMEDY = "launch with launch/accelerate/multi_gpu.yaml or deepspeed_zero2.yaml"
REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP shards each weight over the processes, so channels cannot be pruned",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is for transformers",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "only data parallelism is supported",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's own process groups are not supported",
}
# Launcher's variable → the run's key that decides instead, and values that request nothing.
OVERRIDDEN = {
    "ACCELERATE_MIXED_PRECISION": ("train.precision", ("no",)),
    "ACCELERATE_DYNAMO_BACKEND": ("train.compile", ("no",)),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("train.micro_batch_size", ("1", "auto")),
    "ACCELERATE_GRADIENT_CLIPPING": ("train.clip_norm", ("none", "auto")),
    "ACCELERATE_TORCH_DEVICE": ("CUDA_VISIBLE_DEVICES", ()),
}


def read_flag(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether an environment variable is true; unset is false.

    Raises:
        UserError: it is neither true nor false.
    """
    text = environment.get(name, "").strip().lower()
    if text not in YES + NO:
        raise UserError(f"{name}={text!r} in the environment: must be true or false, or not set")
    return text in YES


def check_supported() -> None:
    """Raise UserError if the environment asks for a kind of training that is not supported."""
    for name, why in REFUSED.items():
        if read_flag(name):
            raise UserError(f"{name}: {why}: {REMEDY}, or unset it")
    if read_flag("ACCELERATE_USE_CPU") and torch.cuda.is_available():
        raise UserError(
            "ACCELERATE_USE_CPU asks for the CPU: set CUDA_VISIBLE_DEVICES='' for that, or unset it"
        )


def ignored_settings(values: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> str:
    """Return a line that names the launcher's settings that the run ignores; empty if there are none.

    Args:
        values: the run's own settings, as text, by key.
        environment: environment that the launcher has set.
    """
    others = []
    for name, (key, requests_nothing) in OVERRIDDEN.items():
        text = environment.get(name, "").strip()
        if text and text.lower() not in (*requests_nothing, values.get(key)):
            others.append(f"{name}={text} ({key} decides)")
    return f"not taken from Accelerate's configuration: {', '.join(others)}" if others else ""


@contextmanager
def hidden() -> Iterator[None]:
    """Hide the launcher's settings from Accelerate, except DeepSpeed's, for the length of a block."""
    names = [
        name
        for name in os.environ
        if (name.startswith("ACCELERATE_") or name == "FORK_LAUNCHED")
        and not name.startswith(("ACCELERATE_DEEPSPEED_", "ACCELERATE_USE_DEEPSPEED"))
    ]
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads and not threads.isdecimal():  # such as 4,2, which Accelerate cannot read
        names.append("OMP_NUM_THREADS")
    before = {name: os.environ.pop(name) for name in names}
    if "OMP_NUM_THREADS" in before:
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    try:
        yield
    finally:
        os.environ.update(before)
