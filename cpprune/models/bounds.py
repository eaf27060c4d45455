"""A bound on what building a network allocates, before it is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# A network is built as it was before it was pruned, which may be much wider than what is left of it.
LEAST_ELEMENTS = 1 << 27
WIDER = 64


class BoundedBuild(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context: at most so many tensors, and so many elements in them, are created.

    Args:
        tensors: state dict of the network that is built, pruned or not.
        allocates: whether what is created takes memory, as on the meta device it does not.

    Raises:
        ValueError: more is created; nothing of that size was allocated.
    """

    def __init__(self, tensors: Mapping[str, Tensor], allocates: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        there = sum(tensor.numel() for tensor in tensors.values())
        # Torch's layers create each of their tensors once; others may create some to draw values.
        self.tensors_left = 4 * len(tensors) + 64
        self.elements_left = max(LEAST_ELEMENTS, WIDER * there) if allocates else math.inf

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count what an operator creates from sizes alone, then run it."""
        if not any(isinstance(argument, Tensor) for argument in args):
            self.tensors_left -= 1
            sizes = args[0] if args and isinstance(args[0], (list, tuple)) else []
            if all(isinstance(size, int) for size in sizes):
                self.elements_left -= math.prod(sizes)
            if min(self.tensors_left, self.elements_left) < 0:
                raise ValueError("the network has far more, or larger, tensors than the file")
        return func(*args, **(kwargs or {}))
