"""The front end in torch without complex numbers, which TensorFlow Lite and ExecuTorch do not have.

The same two steps of matrix products as in ONNX (`cpprune.export.frontend`), and the filter bank in
blocks without most of its zeros; one clip.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from cpprune.audio.config import MelSpec
from cpprune.audio.filterbank import bands
from cpprune.audio.frontend import FULL_SCALE, LOG_OFFSET, LogMel
from cpprune.export.metadata import Input
from cpprune.models.artifact import Model

BLOCKS = 10  # of the filter bank: TensorFlow Lite Micro concatenates no more values


def factors(n_fft: int) -> tuple[int, int]:
    """Return P and Q, P·Q = n_fft, that need the fewest products: 4P + 2Q per sample."""
    divisors = [p for p in range(1, n_fft + 1) if n_fft % p == 0]
    p = min(divisors, key=lambda p: 4 * p + 2 * (n_fft // p))
    return p, n_fft // p


class Scaled(nn.Module):
    """Samples or pixels → fractions of full scale.

    Args:
        full_scale: the number that becomes 1.
    """

    def __init__(self, full_scale: float) -> None:
        super().__init__()
        self.full_scale = full_scale

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return x.float() / self.full_scale


def real_front_end(model: Model, kind: Input) -> nn.Module:
    """Return a module from what an exported model takes to what its network takes."""
    spec = model.features.spec
    if kind == "features":
        return nn.Identity()
    if spec is None:
        return Scaled(255.0)
    log_mel = RealLogMel(spec, model.clip_shape[0])
    return nn.Sequential(Scaled(FULL_SCALE), log_mel) if kind == "int16" else log_mel


class RealLogMel(nn.Module):
    """`LogMel` in evaluation: a waveform [1, T] → its log-mel spectrogram [1, 1, F, N].

    Args:
        spec: the front end's numbers.
        samples: T.
    """

    rows: Tensor
    window: Tensor
    short_real: Tensor
    short_imaginary: Tensor
    turn_real: Tensor
    turn_imaginary: Tensor
    long_real: Tensor
    long_imaginary: Tensor

    def __init__(self, spec: MelSpec, samples: int) -> None:
        super().__init__()
        self.spec, self.number = spec, spec.frames(samples)
        self.p, self.q = p, q = factors(spec.n_fft)
        self.row = math.gcd(spec.hop, spec.n_fft)
        first = np.arange(self.number)[:, None] * (spec.hop // self.row)
        self._keep("rows", (first + np.arange(spec.n_fft // self.row)).reshape(-1), torch.int32)
        own = LogMel(spec)
        self._keep("window", own.hann.double().numpy().reshape(p, q))
        short = np.exp(-2j * np.pi * np.outer(np.arange(p), np.arange(p)) / p)
        turn = np.exp(-2j * np.pi * np.outer(np.arange(p), np.arange(q)) / spec.n_fft)
        long = np.exp(-2j * np.pi * np.outer(np.arange(q), np.arange(q // 2 + 1)) / q)
        for name, matrix in (("short", short), ("turn", turn), ("long", long.T)):
            self._keep(f"{name}_real", matrix.real)
            self._keep(f"{name}_imaginary", matrix.imag)
        self.bands = bands(spec, BLOCKS)
        for number, (filters, frequencies) in enumerate(self.bands):
            self._keep(f"bank_{number}", own.eval_bank.numpy()[filters, frequencies])

    def _keep(
        self, name: str, value: NDArray[np.generic], kind: torch.dtype = torch.float32
    ) -> None:
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value)).to(kind))

    def forward(self, wave_BT: Tensor) -> Tensor:
        """[1, T], in [−1, 1] → [1, 1, F, N]."""
        spec, n = self.spec, self.number
        x = wave_BT
        if spec.pre_emphasis:
            x = x[:, 1:] - spec.pre_emphasis * x[:, :-1]
        half = spec.n_fft // 2
        x = torch.cat([x[:, 1 : half + 1].flip(1), x, x[:, -half - 1 : -1].flip(1)], 1)
        used = (n - 1) * spec.hop + spec.n_fft
        rows = x[:, :used].reshape(-1, self.row)
        x = rows.index_select(0, self.rows).reshape(n, self.p, self.q) * self.window
        x = x.transpose(1, 2)  # [N, Q, P]
        real = linear(x, self.short_real).transpose(1, 2)
        imaginary = linear(x, self.short_imaginary).transpose(1, 2)
        turned = real * self.turn_real - imaginary * self.turn_imaginary
        turned_i = real * self.turn_imaginary + imaginary * self.turn_real
        real = linear(turned, self.long_real) - linear(turned_i, self.long_imaginary)
        imaginary = linear(turned, self.long_imaginary) + linear(turned_i, self.long_real)
        power = (real * real + imaginary * imaginary).transpose(1, 2).reshape(n, -1)
        parts = [
            linear(power[:, frequencies], self.get_buffer(f"bank_{number}"))
            for number, (_, frequencies) in enumerate(self.bands)
        ]
        x = torch.log(torch.cat(parts, 1) + LOG_OFFSET)
        if spec.normalise:
            x = (x + 4.5) / 5.0
        return x.transpose(0, 1)[None, None]
