"""Export jobs for tests."""

from dataclasses import replace
from typing import Any

import torch

from cpprune.export.inputs import choose_input
from cpprune.export.target import Job

SHA = "5" * 64


def clips_of(model: Any, number: int, seed: int = 0) -> torch.Tensor:
    """Return clips of noise as shards store them."""
    generator = torch.Generator().manual_seed(seed)
    low, high, dtype = (-9000, 9000, torch.int16) if model.sample_rate else (0, 256, torch.uint8)
    return torch.randint(low, high, (number, *model.clip_shape), generator=generator, dtype=dtype)


def job_of(model: Any, kind: Any = None, precision: Any = "fp32", **changes: Any) -> Job:
    """Return the job of exporting a model; int8 is calibrated with noise."""
    job = Job(
        model=model,
        input=choose_input(model, kind),
        precision=precision,
        weights_sha256=SHA,
        calibration=clips_of(model, 32, seed=1) if precision == "int8" else None,
        keep_float=("first",),
        clips=clips_of(model, 2),
        run=False,
    )
    return replace(job, **changes)
