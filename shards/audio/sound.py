"""An opened audio file, whatever decodes it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]


class BadFile(Exception):  # noqa: N818 (it is no error of the program)
    """A source file that cannot be used; the text is the reason, without the file's name."""


@dataclass(frozen=True)
class Sound:
    """An opened file.

    Attributes:
        rate: Hz.
        frames: samples a channel, if the header says so and the file bears it out; else None.
        blocks: float32 [samples, channels] of the whole file; an iterator that raises BadFile.
    """

    rate: int
    frames: int | None
    blocks: Iterator[Wave]
