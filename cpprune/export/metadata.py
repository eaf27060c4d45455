"""What an exported model says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

import cpprune
from cpprune.audio.frontend import spec_to_json

if TYPE_CHECKING:
    from cpprune.models.artifact import Model

SEAL = "sha256"
UNSEALED = "0" * 64

Input = Literal["waveform", "int16", "image", "features"]
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What is needed to use the file. Every value is JSON text in `metadata_props`.

    Attributes:
        format: of these keys.
        cpprune_version: that wrote the file.
        weights_sha256: of the `model.safetensors` that it was made from.
        precision: of the weights.
        input: waveform (float32 in [−1, 1]), int16 (a waveform), image (uint8) or features (float32, the
            network's own input, for which the front end is computed outside).
        classes: names of the classes, in the order of the logits.
        clip_shape: shape of one clip.
        sample_rate: samples per second; None for images.
        features: numbers of the front end; None for images.
        architecture: name of the network family.
    """

    format: Literal[1]
    cpprune_version: str
    weights_sha256: str
    precision: Precision
    input: Input
    classes: Annotated[list[str], Meta(min_length=1)]
    clip_shape: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(min_length=1, max_length=3)]
    sample_rate: int | None
    features: dict[str, object] | None
    architecture: str


def describe(model: Model, kind: Input, precision: Precision, weights_sha256: str) -> Metadata:
    """Return what an exported model says of itself.

    Args:
        model: the trained model.
        kind: what the exported one takes.
        precision: of its weights.
        weights_sha256: of the model folder's weights.
    """
    return Metadata(
        format=1,
        cpprune_version=cpprune.__version__,
        weights_sha256=weights_sha256,
        precision=precision,
        input=kind,
        classes=list(model.classes),
        clip_shape=list(model.clip_shape),
        sample_rate=model.sample_rate,
        features=spec_to_json(model.features.spec),
        architecture=model.family,
    )
