"""Exported TensorFlow Lite files as models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cpprune.evaluation.dcase import Complexity
from cpprune.export.file_model import FileModel, load_file
from cpprune.export.inputs import model_input
from cpprune.export.sealed_archive import split_metadata
from cpprune.export.tflite.complexity import tflite_complexity
from cpprune.export.tflite.runtime import Runtime


class TfliteModel(FileModel):
    """A TensorFlow Lite file of `cpprune export` in ai-edge-litert, on the CPU; a `Classifier`.

    Args:
        data: contents of the file.
        threads: of the interpreter.

    Raises:
        ValueError: the bytes are not a file that cpprune exported.
    """

    def __init__(self, data: bytes, threads: int = 1) -> None:
        self._graph, metadata, _ = split_metadata(data)
        super().__init__(metadata, len(data))
        self._run = Runtime(self._graph, threads)
        given = self.input_shape if metadata.input == "features" else self.clip_shape
        if (self._run.name, *self._run.shapes) != (metadata.input, given, (len(self.classes),)):
            name, shapes = self._run.name, self._run.shapes
            raise ValueError(f"has input {name!r} and shapes {shapes}, not those of its metadata")

    def logits(self, clips: Tensor) -> Tensor:
        """Return the logits [B, K] of int16 waveforms [B, T] or uint8 images [B, 1, H, W]."""
        return torch.from_numpy(self._run(model_input(clips, self.metadata.input, self.features)))

    def complexity(self) -> Complexity:
        """Return parameters, macs, bytes and DCASE's limits of the network as it is in the file."""
        return tflite_complexity(self._graph, self.size)


def load_tflite(path: Path, threads: int | None = None) -> TfliteModel:
    """Return the model in a TensorFlow Lite file of `cpprune export`.

    Args:
        path: of the file.
        threads: of the interpreter; None for one.

    Raises:
        UserError: there is no such file, it was changed or cut off, or it is not one of cpprune.
    """
    return load_file(path, lambda data: TfliteModel(data, threads or 1))
