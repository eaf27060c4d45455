"""How fast int16 audio becomes log-mel spectrograms: ours beside the usual ways, in one run.

    python benchmarks/frontend.py [--preset cpjku22_256] [--batch 256]

Also how far that is from the machine's limit: each clip has to be read and its spectrogram written
(bytes), transformed and filtered (FLOPs); the limit is the slower of the two.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import limits
import torch
from torch import Tensor

from cpprune.audio.config import PRESETS, MelSpec
from cpprune.audio.filterbank import filter_bank, frequencies
from cpprune.audio.frontend import LOG_OFFSET, LogMel
from cpprune.distributed.device import default_device


def plain(spec: MelSpec, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Use torch.stft and a dense filter bank, as most projects write it."""
    window = torch.hann_window(spec.window, periodic=spec.periodic_window, device=device)
    ends = torch.tensor([spec.fmin, spec.fmax], device=device)
    bank = filter_bank(spec, ends, frequencies(spec).to(device))

    def call(clips: Tensor) -> Tensor:
        wave = clips.float() / 32768
        if spec.pre_emphasis:
            wave = wave[:, 1:] - spec.pre_emphasis * wave[:, :-1]
        spectrum = torch.stft(
            wave, spec.n_fft, spec.hop, spec.window, window, return_complex=True, pad_mode="reflect"
        )
        log_mel = torch.log(bank @ spectrum.abs().square() + LOG_OFFSET)
        return (log_mel + 4.5) / 5 if spec.normalise else log_mel

    return call


def with_torchaudio(spec: MelSpec, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Use torchaudio's modules, with its own (HTK) filter bank where the preset's is Kaldi's."""
    from torchaudio.transforms import MelSpectrogram

    transform = MelSpectrogram(
        spec.sample_rate,
        spec.n_fft,
        spec.window,
        spec.hop,
        f_max=spec.fmax,
        n_mels=spec.n_mels,
        wkwargs={"periodic": spec.periodic_window},
    ).to(device)

    def call(clips: Tensor) -> Tensor:
        wave = clips.float() / 32768
        if spec.pre_emphasis:
            wave = wave[:, 1:] - spec.pre_emphasis * wave[:, :-1]
        log_mel: Tensor = torch.log(transform(wave) + LOG_OFFSET)
        return (log_mel + 4.5) / 5 if spec.normalise else log_mel

    return call


def with_nnaudio(spec: MelSpec, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Use nnAudio's Fourier transform by convolution, with its own filter bank."""
    from nnAudio.features import MelSpectrogram

    transform = MelSpectrogram(
        spec.sample_rate,
        spec.n_fft,
        spec.window,
        spec.n_mels,
        spec.hop,
        fmax=spec.fmax,
        verbose=False,
    ).to(device)

    def call(clips: Tensor) -> Tensor:
        wave = clips.float() / 32768
        wave = wave[:, 1:] - spec.pre_emphasis * wave[:, :-1]
        return (torch.log(transform(wave) + LOG_OFFSET) + 4.5) / 5

    return call


def work(spec: MelSpec, front_end: LogMel, samples: int) -> tuple[float, float]:
    """Return FLOPs and bytes that one clip cannot do without."""
    frames, length = spec.frames(samples), spec.n_fft
    transform = 2.5 * length * torch.tensor(float(length)).log2().item()
    filters = sum(2 * (f.stop - f.start) * (k.stop - k.start) for f, k in front_end.bands)
    return frames * (transform + filters), samples * 2 + frames * spec.n_mels * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="cpjku22_256", choices=sorted(PRESETS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = default_device()
    single, _, bandwidth = limits.report(device)

    spec, samples = PRESETS[arguments.preset], 32_000
    ours = LogMel(spec).to(device)
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(-8000, 8000, (arguments.batch, samples), generator=generator)
    clips = clips.to(torch.int16).to(device)
    edges = torch.tensor([spec.fmin, spec.fmax], device=device)
    dense = plain(spec, device)
    calls: dict[str, Callable[[], object]] = {
        "torch.stft + dense bank": lambda: dense(clips),
        "torchaudio MelSpectrogram": lambda: torchaudio(clips),
        "ours": lambda: ours(clips),
    }
    torchaudio = with_torchaudio(spec, device)
    if device.type == "cuda":
        fused = ours.compiled()
        calls["ours, compiled"] = lambda: fused(clips)
        calls["ours, compiled, edges moved"] = lambda: fused(clips, edges)
    if importlib.util.find_spec("nnAudio"):
        nnaudio = with_nnaudio(spec, device)
        calls["nnAudio"] = lambda: nnaudio(clips)
    else:
        print("nnAudio: not installed, left out")
    with torch.no_grad():
        apart = (ours(clips)[:, 0] - dense(clips)).abs().max().item()
        found = limits.side_by_side(calls, device, arguments.rounds)

    flops, moved = work(spec, ours, samples)
    limit = 1 / max(flops / single, moved / bandwidth)
    base = arguments.batch / found["torch.stft + dense bank"]
    print(
        f"{arguments.preset}, batch {arguments.batch}; a clip is {flops / 1e6:.2f} MFLOP and "
        f"{moved / 1e3:.0f} kB, so the limit is {limit:,.0f} clips/s;\nours and the dense bank differ "
        f"by {apart:.1e} at most\n"
    )
    print("| front end | clips/s | ratio | of the limit |\n|---|---|---|---|")
    for label, took in found.items():
        speed = arguments.batch / took
        print(f"| {label} | {speed:,.0f} | {speed / base:.2f} | {speed / limit:.1%} |")


if __name__ == "__main__":
    main()
