"""Continuous audio, classified window by window: a window is as long as a clip of training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from cpprune.evaluation import metrics
from cpprune.evaluation.predict import CHUNK, DIVERGED
from cpprune.models.classifier import Classifier
from shards.audio.load import Clips
from shards.errors import UserError


@dataclass(frozen=True)
class Moment:
    """What is heard at a time.

    Attributes:
        seconds: end of the window, from the begin of the audio.
        probabilities: [K], float64, smoothed.
    """

    seconds: float
    probabilities: NDArray[np.float64]


@dataclass
class Listener:
    """Classifies a stream of samples: a window at every hop, smoothed over time.

    The smoothed probabilities are the exponential moving average of those of the windows. Windows of
    one block go through the model together; how the stream is cut into blocks changes no result.

    Args:
        model: of audio.
        hop: samples from one window to the next.
        smoothing: time constant of the average in seconds; 0 for none.

    Attributes:
        heard: number of samples so far.
        classified: number of samples up to the end of the last window.
    """

    model: Classifier
    hop: int
    smoothing: float
    heard: int = field(default=0, init=False)
    classified: int = field(default=0, init=False)
    _smoothed: NDArray[np.float64] | None = field(default=None, init=False)

    def listen(self, blocks: Iterable[Clips]) -> Iterator[Moment]:
        """Yield a moment for each window, as soon as its last sample is there.

        Audio that is shorter than a window is padded with silence to one.

        Args:
            blocks: int16 samples at the model's sample rate, mono, in blocks of any length.

        Raises:
            UserError: the model's output is not finite.
        """
        length = self.model.clip_shape[0]
        waiting = np.zeros(0, np.int16)  # from the begin of the next window on
        skip = 0  # samples until that begins, where the hop is longer than a window
        for block in blocks:
            self.heard += len(block)
            skipped = min(skip, len(block))
            skip -= skipped
            waiting = np.concatenate([waiting, block[skipped:]])
            while len(waiting) >= length:
                number = min((len(waiting) - length) // self.hop + 1, CHUNK)
                windows = np.lib.stride_tricks.sliding_window_view(waiting, length)
                clips = windows[: number * self.hop : self.hop].copy()
                end = self.heard - len(waiting) + length
                yield from self._moments(clips, end)
                skip = max(number * self.hop - len(waiting), 0)
                waiting = waiting[number * self.hop :]
        if 0 < self.heard < length:
            yield from self._moments(np.pad(waiting, (0, length - len(waiting)))[None], self.heard)

    def _moments(self, clips: Clips, end: int) -> Iterator[Moment]:
        rate = self.model.sample_rate
        assert rate is not None
        logits = self.model.logits(torch.from_numpy(clips)).cpu().numpy()
        if not np.isfinite(logits).all():
            raise UserError(f"the model's output is not finite; {DIVERGED}")
        kept = math.exp(-self.hop / rate / self.smoothing) if self.smoothing else 0.0
        for number, row in enumerate(np.exp(metrics.log_softmax(logits))):
            before = row if self._smoothed is None else self._smoothed
            self._smoothed = kept * before + (1 - kept) * row
            self.classified = end + number * self.hop
            yield Moment(self.classified / rate, self._smoothed)
