"""Upper bounds on the tensors that building a network allocates, checked before allocation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from cpprune.models.intercept import Function, Intercept

# A network is built at its width before pruning, which may be much more than what is left.
LEAST_ELEMENTS = 1 << 27
WIDER = 64

# Functions that create a tensor from its size, as torch's layers do.
CREATORS = {"empty", "zeros", "ones", "full", "rand", "randn", "eye", "arange", "tensor"}

FILLERS = {"normal_", "uniform_", "zero_", "fill_", "kaiming_normal_", "kaiming_uniform_"}


class BoundedBuild(Intercept):
    """Context that limits how many tensors, and elements in them, are created.

    Args:
        tensors: state dict of the network to build, pruned or not.
        allocates: whether created tensors take memory; those on the meta device do not.

    Raises:
        ValueError: a tensor would exceed the limits; it is not allocated.
    """

    def __init__(self, tensors: Mapping[str, Tensor], allocates: bool) -> None:
        super().__init__()
        stored = sum(tensor.numel() for tensor in tensors.values())
        # A layer creates each of its tensors once, and perhaps others to initialise them.
        self.tensors_left: float = 4 * len(tensors) + 64
        self.allocates = allocates
        self.elements_left = max(LEAST_ELEMENTS, WIDER * stored) if allocates else math.inf

    def call(self, func: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Count the elements that a function would create, then call it."""
        name = getattr(func, "__name__", "")
        if name in CREATORS:
            sizes = args[0] if args and isinstance(args[0], (list, tuple)) else args
            self.tensors_left -= 1
            if name != "tensor" and all(type(size) is int for size in sizes):
                self.elements_left -= math.prod(sizes)
            if min(self.tensors_left, self.elements_left) < 0:
                raise ValueError("the network has far more, or larger, tensors than the file")
        if name in FILLERS and not self.allocates:
            return args[0] if args else kwargs["tensor"]  # a meta tensor has no values
        return func(*args, **kwargs)
