"""What an exported model takes: which kind of input, and clips in that form."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.audio.frontend import FrontEnd
from cpprune.export.metadata import Input
from cpprune.models.artifact import Model
from shards.errors import UserError

DTYPES = {"waveform": np.float32, "int16": np.int16, "image": np.uint8, "features": np.float32}


def choose_input(model: Model, kind: Input | None) -> Input:
    """Return what a model's file takes, unless the user names another kind that it can take.

    Raises:
        UserError: the model cannot take that kind.
    """
    own: tuple[Input, ...] = ("waveform", "int16") if model.sample_rate else ("image",)
    if kind is not None and kind not in (*own, "features"):
        what = "audio" if model.sample_rate else "images"
        raise UserError(
            f"--input {kind}: the model takes {what}: choose one of {', '.join((*own, 'features'))}"
        )
    return kind or own[0]


def model_input(clips: Tensor, kind: Input, features: FrontEnd) -> NDArray[np.generic]:
    """Return clips in the form that an exported model takes.

    Args:
        clips: waveforms [B, T], int16 or in [−1, 1], or uint8 images [B, 1, H, W].
        kind: what the model takes.
        features: its front end, on the CPU.
    """
    if kind == "features":
        with torch.no_grad():
            clips = features(clips)
    elif kind == "waveform" and clips.dtype == torch.int16:
        clips = clips.float() / 32768.0
    elif kind == "int16" and clips.is_floating_point():
        clips = (clips * 32768.0).round().clamp(-32768, 32767)
    return clips.cpu().numpy().astype(DTYPES[kind], copy=False)
