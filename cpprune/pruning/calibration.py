"""A fixed slice of the training clips, for criteria that look at the data."""

from __future__ import annotations

import numpy as np
import torch

from cpprune.distributed.process_group import rank, world_size
from cpprune.models.artifact import Model
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.saliency import MEASURES, Saliency
from shards.order import permutation, rank_slice
from shards.reader import Split


def measure_saliency(
    config: PruneConfig, model: Model, train: Split, seed: int, device: torch.device
) -> Saliency | None:
    """Return what the criterion measures on the data; None if it looks at the weights alone.

    Every rank has to call it. The slice depends on the seed and the split, not on the number of ranks.
    """
    measure = MEASURES.get(config.criterion)
    if measure is None:
        return None
    slice_ = np.sort(permutation(len(train), seed, len(train))[: config.calibration_clips])
    own = rank_slice(slice_, rank(), world_size())
    clips = torch.from_numpy(train.fetch(own)).to(device)
    labels = torch.from_numpy(train.labels[own]).to(device)
    return measure(model.network, model.features(clips), labels, len(slice_))
