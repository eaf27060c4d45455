"""Values that are no numbers: found in networks, and kept out of what is written."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import nn


def to_json(value: Any, indent: int | None = None) -> str:
    """Return strict JSON, in which null stands for NaN and infinities: JSON has none of them."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_with_null(value), indent=indent, allow_nan=False)


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@torch.no_grad()
def not_finite(network: nn.Module) -> list[str]:
    """Return the names of parameters that are not finite, and of buffers that hold NaN.

    (A buffer may well hold an infinity, such as the mask of an attention.)
    """
    named = [(name, p.isfinite().all()) for name, p in network.named_parameters()]
    named += [(name, ~b.isnan().any()) for name, b in network.named_buffers()]
    if not named:
        return []
    names, flags = zip(*named, strict=True)
    fine = torch.stack(flags).tolist()
    return [name for name, is_fine in zip(names, fine, strict=True) if not is_fine]
