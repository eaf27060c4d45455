"""What `accelerate launch` and its default configuration ask for: what is taken, refused and said.

Accelerate reads its settings from the environment, where its launcher puts those of the user's default
configuration. How a run trains is said by the run's own settings alone, so Accelerate is shown none of
them but DeepSpeed's, and who asked for something else is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from shards.errors import InputError

# Accelerate's words, from its `str_to_bool`.
YES, NO = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0", "")
PLAIN = "launch with launch/accelerate/multi_gpu.yaml or deepspeed_zero2.yaml"
REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP spreads each weight over the processes, so channels cannot be cut",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is for transformers",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "only data are spread over the processes",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's own process groups are not supported",
}
# What says the same in a run, and values that ask for nothing.
OURS = {
    "ACCELERATE_MIXED_PRECISION": ("train.precision", ("no",)),
    "ACCELERATE_DYNAMO_BACKEND": ("train.compile", ("no",)),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("train.micro_batch_size", ("1", "auto")),
    "ACCELERATE_GRADIENT_CLIPPING": ("train.clip_norm", ("none", "auto")),
    "ACCELERATE_TORCH_DEVICE": ("CUDA_VISIBLE_DEVICES", ()),
}


def flag(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a variable of the environment says yes.

    Raises:
        InputError: it says neither yes nor no.
    """
    text = environment.get(name, "").strip().lower()
    if text not in YES + NO:
        raise InputError(f"{name}={text!r} in the environment: must be true or false, or not set")
    return text in YES


def refuse_what_cannot_be_had() -> None:
    """Raise InputError where the environment asks for another kind of training than there is."""
    for name, why in REFUSED.items():
        if flag(name):
            raise InputError(f"{name}: {why}: {PLAIN}, or unset it")
    if flag("ACCELERATE_USE_CPU") and torch.cuda.is_available():
        raise InputError(
            "ACCELERATE_USE_CPU asks for the CPU: set CUDA_VISIBLE_DEVICES='' for that, or unset it"
        )


def not_taken(values: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> str:
    """Return a line about settings of the launcher that the run does not follow; empty if none.

    Args:
        values: of the run's own settings, as text, by name.
        environment: where the launcher puts its own.
    """
    others = []
    for name, (ours, nothing) in OURS.items():
        text = environment.get(name, "").strip()
        if text and text.lower() not in (*nothing, values.get(ours)):
            others.append(f"{name}={text} ({ours} decides)")
    return f"not taken from Accelerate's configuration: {', '.join(others)}" if others else ""


@contextmanager
def hidden() -> Iterator[None]:
    """Hide its own settings from Accelerate, but DeepSpeed's, for the length of a block."""
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
