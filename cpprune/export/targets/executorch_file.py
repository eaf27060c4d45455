"""ExecuTorch: one program, with the front end inside, for phones and embedded Linux."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.export.target import Job, Product, file_summary, target

if TYPE_CHECKING:
    from cpprune.export.executorch.model import ExecutorchModel


def _load(path: Path, threads: int | None = None) -> ExecutorchModel:
    from cpprune.export.executorch.model import load_executorch

    return load_executorch(path)  # always on one


@target(
    "executorch",
    help="one ExecuTorch program for XNNPACK",
    precisions=("fp32", "int8"),
    suffix=".pte",
    needs=("executorch",),
    extra="executorch",
    as_trained=True,
    keeps_float=True,
    load=_load,
)
def _to_executorch(job: Job) -> Product:
    from cpprune.export.executorch.convert import convert
    from cpprune.export.executorch.model import ExecutorchModel
    from cpprune.export.sealed_archive import with_metadata

    program, costs = convert(job)
    data = with_metadata(program, job.metadata(), **asdict(costs))
    exported = ExecutorchModel(data)
    cost = exported.complexity()
    return Product(
        files={"": data}, complexity=cost, exported=exported, summary=file_summary(cost["bytes"])
    )
