"""What evaluation and prediction know of a model, whatever computes it: clips in, logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Classifier(Protocol):
    """A classifier of clips: that of a model folder, or of an exported file."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the logits."""

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """Shape of one clip: (samples,), or (1, rows, columns) for images."""

    @property
    def sample_rate(self) -> int | None:
        """Samples per second of its waveforms; None for images."""

    def logits(self, clips: Tensor) -> Tensor:
        """Return the logits [B, K], float32, of int16 waveforms [B, T] or uint8 images [B, 1, H, W]."""
