"""DeepSpeed with ZeRO-1 or ZeRO-2: optimizer state is sharded over the ranks, weights are not.

ZeRO-3 and FSDP shard the weights too, so that no rank holds a network that could be pruned.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cpprune.deps.deepspeed import allocate_state
from cpprune.distributed.accelerate_settings import read_flag
from shards.errors import UserError
from shards.files.documents import read_json

if TYPE_CHECKING:
    from accelerate import DeepSpeedPlugin
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

SWITCH = "ACCELERATE_USE_DEEPSPEED"  # environment variable of the launcher


def is_requested() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return read_flag(SWITCH)


def make_plugin(precision: str, clip_norm: float) -> DeepSpeedPlugin:
    """Return Accelerate's DeepSpeedPlugin as the launcher's environment describes it.

    Args:
        precision: precision of the run. Weights stay in float32; the network runs under autocast.
        clip_norm: largest norm of the gradient; 0 is off.

    Raises:
        UserError: DeepSpeed is not installed, or a setting is not supported here.
    """
    if precision == "fp16":
        raise UserError("train.precision=fp16 is not for DeepSpeed: use bf16 or no")
    settings = _settings()
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError('DeepSpeed: "zero_optimization" must be an object such as {"stage": 2}')
    stage = zero.get("stage", 2)
    if stage not in (1, 2):
        raise UserError(
            f"DeepSpeed ZeRO stage {stage}: use 1 or 2 (launch/accelerate/deepspeed_zero1.yaml or "
            "deepspeed_zero2.yaml); stage 3 spreads each weight over the processes, so channels cannot "
            "be cut, and stage 0 is multi_gpu.yaml"
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if len(torch.__file__.split()) > 1:
            raise UserError(
                f"on a CPU, DeepSpeed compiles a module against torch, which works from no path with "
                f"a space, such as {torch.__file__}: start it from a virtual environment elsewhere, or "
                "through a link to this one"
            )
    try:
        import deepspeed  # noqa: F401
        from accelerate import DeepSpeedPlugin
    except ImportError as error:
        raise UserError(
            f"the launcher asks for DeepSpeed, which cannot be imported ({error}): pip install "
            "'cpprune[deepspeed]'"
        ) from None
    settings |= {
        # The engine makes the micro-batches, and says which is the last.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    # Accelerate refuses its own fields beside a DeepSpeed configuration, which already includes them.
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    try:
        return DeepSpeedPlugin(hf_ds_config=settings)
    except PackageNotFoundError as error:
        raise UserError(
            f"Accelerate's DeepSpeed support needs {error.name}: pip install 'cpprune[deepspeed]'"
        ) from None


def _settings() -> dict[str, object]:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file.lower() == "none":
        for what in ("OPTIMIZER", "PARAM"):
            name = f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE"
            if os.environ.get(name, "none").lower() != "none":
                raise UserError(f"{name}={os.environ[name]}: offloading is not supported; set none")
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return {"zero_optimization": {"stage": int(stage) if stage in ("1", "2") else stage}}
    settings = read_json(Path(file), dict[str, object], remedy="give a DeepSpeed configuration")
    for key in ("optimizer", "scheduler", "fp16", "bf16"):
        if settings.pop(key, None):
            raise UserError(f"{file}: leave out {key!r}: the run's own configuration says it")
    return settings


def get_full_optimizer_state(
    network: nn.Module, optimizer: DeepSpeedZeroOptimizer
) -> dict[str, Tensor]:
    """Return the whole state of a ZeRO optimizer as {"parameter/key": tensor}, on the host.

    A collective operation.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    found: dict[str, Tensor] = {}
    states = list(optimizer.optimizer.state.values())
    if not states:
        return found
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            for key, value in states[0].items():
                whole = value
                if value.ndim:
                    whole = safe_get_full_optimizer_state(parameter, key)
                found[f"{name}/{key}"] = whole.detach().cpu().clone().contiguous()
    return found


def set_full_optimizer_state(
    network: nn.Module, optimizer: DeepSpeedZeroOptimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Give a ZeRO optimizer the state that `get_full_optimizer_state` returned.

    A collective operation.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    allocate_state(optimizer)
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        if value.ndim:
            safe_set_full_optimizer_state(network.get_parameter(name), value, key)
        else:
            for state in optimizer.optimizer.state.values():
                state[key] = value.clone()
