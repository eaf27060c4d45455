"""Clips that set the ranges of activations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shards.errors import UserError
from shards.order import permutation
from shards.split import Split


def calibration_clips(split: Split, clips: int, seed: int = 0) -> Tensor:
    """Return clips of a split, the same ones for a seed.

    Args:
        split: of training clips.
        clips: how many; all if the split has fewer.
        seed: of the choice.

    Raises:
        UserError: the split is empty.
    """
    if not len(split):
        raise UserError(f"{split.dataset.path}: split {split.name} has no clips to calibrate with")
    chosen = np.sort(permutation(len(split), seed, len(split))[:clips])
    return torch.from_numpy(split.fetch(chosen))
