"""A bound on what building a network allocates, before it is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

# A network is built as it was before it was pruned, which may be much wider than what is left of it.
LEAST_ELEMENTS = 1 << 27
WIDER = 64

# By sizes, as torch's layers make their tensors.
CREATORS = {"empty", "zeros", "ones", "full", "rand", "randn", "eye", "arange", "tensor"}

FILLERS = {"normal_", "uniform_", "zero_", "fill_", "kaiming_normal_", "kaiming_uniform_"}


class BoundedBuild(TorchFunctionMode):
    """Context: at most so many tensors, and so many elements in them, are created.

    Args:
        tensors: state dict of the network that is built, pruned or not.
        allocates: whether what is created takes memory, as on the meta device it does not.

    Raises:
        ValueError: more is created; nothing of that size was allocated.
    """

    def __init__(self, tensors: Mapping[str, Tensor], allocates: bool) -> None:
        super().__init__()
        there = sum(tensor.numel() for tensor in tensors.values())
        # A layer creates each of its tensors once; others may create some to draw values.
        self.tensors_left: float = 4 * len(tensors) + 64
        self.allocates = allocates
        self.elements_left = max(LEAST_ELEMENTS, WIDER * there) if allocates else math.inf

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count what a function creates from sizes alone, then call it."""
        name = getattr(func, "__name__", "")
        if name in CREATORS:
            sizes = args[0] if args and isinstance(args[0], (list, tuple)) else args
            self.tensors_left -= 1
            if name != "tensor" and all(type(size) is int for size in sizes):
                self.elements_left -= math.prod(sizes)
            if min(self.tensors_left, self.elements_left) < 0:
                raise ValueError("the network has far more, or larger, tensors than the file")
        kwargs = kwargs or {}
        if name in FILLERS and not self.allocates:
            return args[0] if args else kwargs["tensor"]  # there is nothing to fill
        return func(*args, **kwargs)
