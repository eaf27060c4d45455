"""The average of several models' outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cpprune.distill.config import Average


def average(logits: Sequence[Tensor], weights: Sequence[float], of: Average) -> Tensor:
    """Return the weighted average of models' logits [B, K] as logits [B, K].

    Averages of log-probabilities are not offered: their softmax is that of averaged logits.

    Args:
        logits: of each model.
        weights: of each model, above 0; they are divided by their sum.
        of: logits, or probabilities, whose average is returned as its logarithm.
    """
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    if of == "logits":
        return torch.stack([s * z for s, z in zip(shares, logits, strict=True)]).sum(0)
    parts = [z.log_softmax(1) + math.log(s) for s, z in zip(shares, logits, strict=True)]
    return torch.stack(parts).logsumexp(0)
