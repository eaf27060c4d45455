"""A TensorFlow Lite graph run by ai-edge-litert on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpprune.export.file_model import first_line
from cpprune.export.quiet import quiet


class Runtime:
    """A graph that takes one clip and returns its logits, as all that `cpprune export` writes.

    Args:
        graph: the flatbuffer.
        threads: of the interpreter.

    Raises:
        ValueError: it cannot be run, or has other inputs or outputs.
    """

    def __init__(self, graph: bytes, threads: int = 1) -> None:
        try:
            with quiet():
                from ai_edge_litert.interpreter import Interpreter

                self._interpreter = Interpreter(model_content=graph, num_threads=threads)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"cannot be run by ai-edge-litert ({first_line(error)})") from error
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(f"has {len(inputs)} inputs and {len(outputs)} outputs")
        (self._given,), (self._made,) = inputs, outputs

    @property
    def name(self) -> str:
        """Name of the input."""
        return str(self._given["name"])

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the input and the output, without the batch of one."""
        given, made = self._given["shape"][1:], self._made["shape"][1:]
        return tuple(map(int, given)), tuple(map(int, made))

    def __call__(self, clips: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return the logits [B, K] of inputs [B, …].

        Inputs and outputs of int8 are converted from and to float32 by their scales and zero points.
        """
        logits = np.empty((len(clips), *self.shapes[1]), np.float32)
        for number, clip in enumerate(clips):
            self._interpreter.set_tensor(self._given["index"], quantized(clip[None], self._given))
            self._interpreter.invoke()
            logits[number] = dequantized(
                self._interpreter.get_tensor(self._made["index"]), self._made
            )[0]
        return logits


def quantized(values: NDArray[np.generic], details: dict[str, Any]) -> NDArray[np.generic]:
    """Return values as a tensor with these details stores them."""
    scale, zero = details["quantization"]
    if not scale:
        return np.ascontiguousarray(values)
    stored: NDArray[np.int8] = np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8)
    return stored


def dequantized(values: NDArray[np.generic], details: dict[str, Any]) -> NDArray[np.float32]:
    """Return the numbers that the values of a tensor with these details stand for."""
    scale, zero = details["quantization"]
    return (values.astype(np.float32) - zero) * scale if scale else values.astype(np.float32)
