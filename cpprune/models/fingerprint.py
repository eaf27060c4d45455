"""Hashes that tell whether two networks are equal: in structure, or to the last bit."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """Return the sha256 of the names, shapes, dtypes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def structure(network: nn.Module) -> str:
    """Return the sha256 of the names and shapes of all parameters and buffers."""
    text = "\n".join(f"{name} {tuple(t.shape)}" for name, t in network.state_dict().items())
    return hashlib.sha256(text.encode()).hexdigest()
