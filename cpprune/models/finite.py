"""Non-finite parameters and buffers."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def not_finite(network: nn.Module) -> list[str]:
    """Return the names of parameters that are not finite, and of buffers that hold NaN.

    Buffers may hold infinities, such as an attention mask.
    """
    named = [(name, p.isfinite().all()) for name, p in network.named_parameters()]
    named += [(name, ~b.isnan().any()) for name, b in network.named_buffers()]
    if not named:
        return []
    names, flags = zip(*named, strict=True)
    fine = torch.stack(flags).tolist()
    return [name for name, is_fine in zip(names, fine, strict=True) if not is_fine]
