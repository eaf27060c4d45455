"""Exported ExecuTorch programs as models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from cpprune.evaluation import dcase
from cpprune.export.executorch.runtime import Program
from cpprune.export.file_model import FileModel, load_file
from cpprune.export.inputs import model_input
from cpprune.export.sealed_archive import split_metadata
from shards.files.documents import typed


class Sizes(TypedDict):
    """Bytes of the network's and the front end's constants."""

    network: int
    front_end: int


@dataclass(frozen=True)
class Costs:
    """What a program says of itself beside its metadata, since it cannot be read from its contents.

    Attributes:
        cost: of one pass.
        sizes: of its constants.
    """

    cost: dcase.Cost
    sizes: Sizes


class ExecutorchModel(FileModel):
    """An ExecuTorch file of `cpprune export` in its runtime, on the CPU; a `Classifier`.

    Args:
        data: contents of the file.

    Raises:
        ValueError: the bytes are not a file that cpprune exported.
    """

    def __init__(self, data: bytes) -> None:
        program, metadata, about = split_metadata(data)
        super().__init__(metadata, len(data))
        self._costs = typed(about, Costs)
        self._run = Program(program)
        given = self.input_shape if metadata.input == "features" else self.clip_shape
        if self._run.shapes != (given, (len(self.classes),)):
            raise ValueError(f"has shapes {self._run.shapes}, not those of its metadata")

    def logits(self, clips: Tensor) -> Tensor:
        """Return the logits [B, K] of int16 waveforms [B, T] or uint8 images [B, 1, H, W]."""
        return torch.from_numpy(self._run(model_input(clips, self.metadata.input, self.features)))

    def complexity(self) -> dcase.Complexity:
        """Return parameters, macs, bytes and DCASE's limits of the network as it is in the file."""
        cost, sizes = self._costs.cost, self._costs.sizes
        return {
            "parameters": cost["parameters"],
            "macs": cost["macs"],
            "operations": cost["operations"],
            "bytes": {
                "network": sizes["network"],
                "front_end": sizes["front_end"],
                "file": self.size,
            },
            "limits": dcase.limits(cost["macs"], {"network": sizes["network"]}),
        }


def load_executorch(path: Path) -> ExecutorchModel:
    """Return the model in an ExecuTorch file of `cpprune export`.

    Args:
        path: of the file.

    Raises:
        UserError: there is no such file, it was changed or cut off, or it is not one of cpprune.
    """
    return load_file(path, ExecutorchModel)
