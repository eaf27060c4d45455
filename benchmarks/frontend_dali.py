"""The log-mel front end of DALI beside that of torch: the same waveforms, in turns, in one process.

python benchmarks/frontend_dali.py             # every preset, on the GPU if there is one
python benchmarks/frontend_dali.py --clips 256 --rounds 10
"""

import argparse
import os
import statistics
import time
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from cpprune.audio.config import PRESETS
from cpprune.audio.dali import on_dali
from cpprune.audio.frontend import LogMel
from cpprune.distributed.device import default_device


def waveforms(clips: int, samples: int, device: torch.device) -> Tensor:
    """Returns int16 noise [clips, samples]."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(-8000, 8000, (clips, samples), dtype=np.int16)).to(device)


def seconds(features: LogMel, wave_BT: Tensor) -> float:
    """Times one batch."""
    start = time.perf_counter()
    features(wave_BT)
    if wave_BT.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def dali_seconds(wave_BT: Tensor, preset: str = "cpjku22_256", rounds: int = 5) -> list[float]:
    """Times DALI's front end on these waveforms, after a batch that builds its pipeline."""
    features = on_dali(LogMel(PRESETS[preset])).to(wave_BT.device)
    features(wave_BT)
    return [seconds(features, wave_BT) for _ in range(rounds)]


def compare(preset: str, wave_BT: Tensor, rounds: int) -> None:
    ours = LogMel(PRESETS[preset]).to(wave_BT.device)
    theirs = on_dali(LogMel(PRESETS[preset])).to(wave_BT.device)
    apart = (ours(wave_BT) - theirs(wave_BT)).abs().max().item()
    pairs = [(seconds(ours, wave_BT), seconds(theirs, wave_BT)) for _ in range(rounds)]
    ratio = statistics.median(torch_ / dali for torch_, dali in pairs)
    speeds = [len(wave_BT) / min(times) for times in zip(*pairs, strict=True)]
    print(
        f"{preset:8}  torch {speeds[0]:9,.0f} clips/s  dali {speeds[1]:9,.0f} clips/s  dali is "
        f"{ratio:.2f} times as fast (median of {rounds} pairs), features at most {apart:.0e} apart"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="DALI's front end beside torch's.")
    parser.add_argument("--clips", type=int, default=64, help="one-second clips in a batch")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = default_device()
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    dali = version("nvidia-dali-cuda130")
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    print(f"{where}, {cores} cores, {threads} thread(s), torch {torch.__version__}, DALI {dali}")
    for preset in PRESETS:
        wave_BT = waveforms(arguments.clips, PRESETS[preset].sample_rate, device)
        compare(preset, wave_BT, arguments.rounds)


if __name__ == "__main__":
    main()
