"""Log-mel front end with NVIDIA DALI: conversion to float, pre-emphasis and power spectrum.

DALI gets the same waveforms as the torch front end: after ordering, slicing over ranks and augmentation
of waveforms. So these, and resuming from a checkpoint, do not depend on the backend. DALI has no Kaldi
filter bank: the one of `cpprune.audio.filterbank` is applied to its power spectrum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cpprune.audio.config import MelSpec
from cpprune.audio.frontend import FULL_SCALE, FrontEnd, LogMel
from shards.errors import UserError

if TYPE_CHECKING:
    from nvidia.dali import Pipeline


def on_dali(features: FrontEnd) -> DaliLogMel:
    """Return the same front end, computed by DALI.

    Raises:
        UserError: DALI is not installed, or the front end is that of images.
    """
    if features.spec is None:
        raise UserError(
            "features.backend=dali: images have no front end; leave it out or set it to torch"
        )
    try:
        import nvidia.dali
    except ImportError:
        raise UserError(
            "features.backend=dali: NVIDIA DALI is not installed; pip install 'cpprune[dali]', or set "
            "features.backend=torch"
        ) from None
    assert nvidia.dali
    return DaliLogMel(features.spec)


class DaliLogMel(LogMel):
    """Waveforms → log-mel spectrograms as `LogMel` makes them, on the device of the waveforms.

    Log-mel values of noise differ from those of torch by less than 1e-3 (tests/audio/test_dali.py), as
    both differ from float64. In a bin of almost no energy beside a loud tone, both are less exact.
    """

    cpu_clips = 1 << 30  # all of them: running the pipeline has a fixed cost

    def __init__(self, spec: MelSpec) -> None:
        super().__init__(spec)
        self._pipelines: dict[tuple[torch.device, torch.dtype], Pipeline] = {}

    def compiled(self) -> DaliLogMel:
        """Return itself: DALI's kernels are compiled already."""
        return self

    def power(self, wave_BT: Tensor) -> Tensor:
        """[B, T] int16, or float in [−1, 1] → power spectrum [B, N, K]."""
        wave = wave_BT.contiguous()
        if wave.dtype != torch.int16:
            wave = wave.float()
        pipeline = self._pipeline(wave)
        if wave.device.type == "cpu":
            pipeline.feed_input("wave", wave.numpy())
            (spectra,) = pipeline.run()
            return torch.from_numpy(np.array(spectra.as_tensor()))
        from nvidia.dali.plugin.pytorch import feed_ndarray

        stream = torch.cuda.current_stream(wave.device)
        pipeline.feed_input("wave", wave, cuda_stream=stream)
        (spectra,) = pipeline.run()
        found = spectra.as_tensor()
        power_BNK = torch.empty(found.shape(), device=wave.device)
        return feed_ndarray(found, power_BNK, cuda_stream=stream)  # type: ignore[no-any-return]

    def _pipeline(self, wave: Tensor) -> Pipeline:
        """Return a pipeline for waveforms of this type, for as many as these at least."""
        key = wave.device, wave.dtype
        kept = self._pipelines.get(key)
        if kept is None or kept.max_batch_size < len(wave):
            kept = self._pipelines[key] = self._build(wave)
        return kept

    def _build(self, wave: Tensor) -> Pipeline:
        from nvidia.dali import Pipeline, fn, types

        spec = self.spec
        gpu = wave.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=len(wave),
            num_threads=torch.get_num_threads(),
            device_id=wave.device.index if gpu else None,
            # One batch at a time: the loader prefetches.
            prefetch_queue_depth=1,
            exec_pipelined=False,
            exec_async=False,
        )
        with pipeline:
            samples = fn.external_source(name="wave", device="gpu" if gpu else "cpu")
            if wave.dtype == torch.int16:
                samples = fn.cast(samples, dtype=types.FLOAT) / FULL_SCALE
            if spec.pre_emphasis:
                samples = fn.preemphasis_filter(samples, preemph_coeff=spec.pre_emphasis)[1:]
            pipeline.set_outputs(
                fn.spectrogram(
                    samples,
                    nfft=spec.n_fft,
                    # The window centred in its transform, as in torch; DALI's default is none of
                    # torch's windows.
                    window_fn=self.hann.tolist(),
                    window_length=spec.n_fft,
                    window_step=spec.hop,
                    center_windows=True,
                    reflect_padding=True,
                    power=2,
                    layout="tf",
                )
            )
        pipeline.build()
        return pipeline
