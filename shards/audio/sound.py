"""An open audio file, independent of its decoder."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]


class BadFile(Exception):  # noqa: N818 (it is no error of the program)
    """Unusable source file; the message is the reason, without the name of the file."""


@dataclass(frozen=True)
class Sound:
    """An open audio file.

    Attributes:
        rate: sample rate in Hz.
        frames: samples per channel, if the header states them and the file confirms it; else None.
        blocks: the samples, in blocks of float32 [samples, channels]; iterating may raise BadFile.
    """

    rate: int
    frames: int | None
    blocks: Iterator[Wave]
