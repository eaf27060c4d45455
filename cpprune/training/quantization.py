"""Quantisation-aware training: an event of the loop, from which on the network is fake-quantised."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from cpprune.distributed import deepspeed
from cpprune.models.artifact import Model
from cpprune.models.quantized import RANGES, is_quantized, quantize
from cpprune.models.registry import can_be_fused
from cpprune.models.resize import layer_widths
from cpprune.training.config import QuantizeConfig
from shards.errors import UserError

if TYPE_CHECKING:
    from cpprune.runs.checkpoint import Saved


def restore(saved: Saved, model: Model, config: QuantizeConfig) -> None:
    """Make a run's network that of a checkpoint: blocks, widths and weights, fake-quantised if it is."""
    saved.remove_blocks(model.network)  # the ranges are those of the operations that were left
    if RANGES in saved.tensors.network:
        quantize(model.network, model.input_shape, config.keep_float)
    saved.restore(model.network)


def is_due(config: QuantizeConfig, model: Model, epoch: int) -> bool:
    """Return whether quantisation-aware training begins with this epoch, and has not begun."""
    return epoch == config.start_epoch and not is_quantized(model.network)


def is_to_come(config: QuantizeConfig, model: Model) -> bool:
    """Return whether quantisation-aware training is asked for and has not begun."""
    return config.start_epoch is not None and not is_quantized(model.network)


def rehearse(config: QuantizeConfig, model: Model) -> list[str]:
    """Try on a copy of the network whether it can be quantised; return what the run should say.

    Raises:
        UserError: it cannot, or the launcher's DeepSpeed cannot train it.
    """
    if not is_to_come(config, model):
        return []
    key = f"quantize.start_epoch={config.start_epoch}"
    if deepspeed.is_requested():
        raise UserError(
            f"{key}: DeepSpeed cannot take over a network that changes to int8; launch with "
            "launch/accelerate/multi_gpu.yaml"
        )
    if can_be_fused(model.network):
        raise UserError(
            f"{key}: model.name={model.family} is quantised once it is fused, as it is when it is "
            "saved: train it, then give --init RUN/model"
        )
    twin = copy.deepcopy(model.network)
    fake = quantize(twin, model.input_shape, config.keep_float)
    every = len(layer_widths(twin).keys() | fake.layers.keys())
    return [
        f"quantised from epoch {config.start_epoch} on (counted from 0): {len(fake.layers)} of {every} "
        f"layers, {len(fake.ranges)} activations; in float32 and not compiled, whatever train.* says"
    ]
