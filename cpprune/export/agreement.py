"""Whether an exported network gives the outputs of the one that it was made from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of the largest output. Among integers, one that is rounded otherwise, at a tie, changes others.
FLOATS, INTEGERS = 1e-3, 0.1


def agree(found: NDArray[np.float32], expected: NDArray[np.float32], part: float) -> bool:
    """Return whether outputs have one shape, and differ by at most this part of the largest."""
    if found.shape != expected.shape:
        return False
    return bool(np.abs(found - expected).max() <= part * np.abs(expected).max())
