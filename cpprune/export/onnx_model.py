"""Exported ONNX files as models: evaluated, tried on recordings and described as model folders are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cpprune.evaluation.dcase import Complexity
from cpprune.export.complexity import onnx_complexity
from cpprune.export.file_model import REMEDY, FileModel, first_line, load_file
from cpprune.export.inputs import model_input
from cpprune.export.onnx_session import open_session
from cpprune.export.sealed_onnx import unseal
from shards.errors import UserError


class OnnxModel(FileModel):
    """An ONNX file of `cpprune export` in onnxruntime, on the CPU; a `Classifier`.

    Args:
        data: contents of the file.
        threads: of onnxruntime; None for its default, the number of cores.
        exact: whether no product of int8 saturates; see `open_session`.

    Raises:
        ValueError: the bytes are not a file that cpprune exported.
    """

    def __init__(self, data: bytes, threads: int | None = None, exact: bool = True) -> None:
        self._graph, metadata = unseal(data)
        super().__init__(metadata, len(data))
        if any(constant.external_data for constant in self._graph.graph.initializer):
            raise ValueError("refers to other files")
        try:
            self._session = open_session(data, threads=threads, exact=exact)
        except Exception as error:  # of a C++ library
            raise ValueError(f"cannot be run by onnxruntime ({first_line(error)})") from error
        (given,), (made,) = self._session.get_inputs(), self._session.get_outputs()
        if (given.name, made.name) != (self.metadata.input, "logits"):
            raise ValueError(f"has input {given.name!r} and output {made.name!r}")

    def logits(self, clips: Tensor) -> Tensor:
        """Return the logits [B, K] of int16 waveforms [B, T] or uint8 images [B, 1, H, W].

        Raises:
            UserError: onnxruntime cannot run the graph.
        """
        kind = self.metadata.input
        given = {kind: model_input(clips, kind, self.features)}
        try:
            (found,) = self._session.run(None, given)
        except Exception as error:  # of a C++ library
            raise UserError(
                f"the ONNX file cannot be run: {first_line(error)}; {REMEDY}"
            ) from error
        logits = torch.from_numpy(found).float()
        if logits.shape != (len(clips), len(self.classes)):
            raise UserError(f"the ONNX file gives outputs of shape {list(logits.shape)}; {REMEDY}")
        return logits

    def complexity(self) -> Complexity:
        """Return parameters, macs, bytes and DCASE's limits of the network as it is in the file."""
        return onnx_complexity(self._graph, self.size)


def load_onnx(path: Path, threads: int | None = None) -> OnnxModel:
    """Return the model in a file of `cpprune export`.

    Args:
        path: the file.
        threads: of onnxruntime; None for its default, the number of cores.

    Raises:
        UserError: there is no such file, it was changed or cut off, or it is not one of cpprune.
    """
    return load_file(path, lambda data: OnnxModel(data, threads))
