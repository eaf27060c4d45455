"""A network as an export that can be run and timed here, from its structure alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from cpprune.audio.frontend import build_features
from cpprune.export.check import noise
from cpprune.export.sizes import as_loaded
from cpprune.export.target import Exported, Job, targets
from cpprune.models.artifact import Model
from cpprune.models.example import example_input
from cpprune.models.quantized import dequantize, is_quantized
from shards.errors import UserError

if TYPE_CHECKING:
    from cpprune.export.metadata import Precision

CLIPS = 2
NONE = "f" * 64  # there is no file of weights; zeros stand for what sealing fills in


def to_be_timed(network: nn.Module, input_shape: Sequence[int], form: str) -> Exported:
    """Return what `cpprune export --input features` makes of a network, to be run on one thread.

    With int8, the ranges are those of noise, and layers are in float32 as they are by default.

    Args:
        network: any module, fake-quantised or not; it is not changed.
        input_shape: shape of one input, without the batch.
        form: a target of `cpprune export` and a precision, such as "onnx-int8".

    Raises:
        UserError: the network cannot be exported, or packages or a compiler for it are not installed.
    """
    name, _, precision = form.rpartition("-")
    target = targets()[name]
    target.require(f"the latency of an export to {form}")
    twin = as_loaded(network)
    if is_quantized(twin) and not (precision == "int8" and target.as_trained):
        dequantize(twin)
    with torch.no_grad():
        classes = twin(example_input(twin, input_shape)).shape[1]
    # Images, since their front end takes next to no time.
    model = Model(
        twin,
        build_features(None),
        family="",
        config={},
        classes=[str(number) for number in range(classes)],
        clip_shape=input_shape,
    )
    calibrated = precision == "int8" and not is_quantized(twin)
    job = Job(
        model=model,
        input="features",
        precision=cast("Precision", precision),
        weights_sha256=NONE,
        calibration=noise(model, CLIPS) if calibrated else None,
        keep_float=("first",),
        clips=noise(model, CLIPS),
        run=True,
        trial=True,
    )
    made = target.make(job).exported
    if made is None:
        raise UserError(f"an export to {name} cannot be run here: its latency is not known")
    return made
