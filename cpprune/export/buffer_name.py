"""Names of a layer's tensors where a name may have no dots."""

from __future__ import annotations


def buffer_name(layer: str, key: str) -> str:
    """Return the name of a layer's tensor; those of different layers, such as a.b and a_b, differ.

    Args:
        layer: its name.
        key: what the tensor is of it, such as weight.
    """
    return f"{layer.replace('_', '_u').replace('.', '_d')}_{key}"
