"""An ExecuTorch program run by its Python runtime on the CPU, in one thread."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cpprune.deps.executorch import use_one_thread
from cpprune.export.file_model import first_line
from cpprune.export.quiet import quiet


class Program:
    """A program that takes one clip and returns its logits, as all that `cpprune export` writes.

    Args:
        program: its bytes.

    Raises:
        ValueError: it cannot be run, or has other inputs or outputs.
    """

    def __init__(self, program: bytes) -> None:
        try:
            with quiet():
                from executorch.runtime import Runtime

                use_one_thread()
                self._program = Runtime.get().load_program(program)
                self._method = self._program.load_method("forward")
        except RuntimeError as error:
            raise ValueError(f"cannot be run by ExecuTorch ({first_line(error)})") from error
        about = self._method.metadata
        if (about.num_inputs(), about.num_outputs()) != (1, 1):
            raise ValueError(f"has {about.num_inputs()} inputs and {about.num_outputs()} outputs")
        given, made = about.input_tensor_meta(0), about.output_tensor_meta(0)
        # Without the batch of one.
        self.shapes = tuple(given.sizes()[1:]), tuple(made.sizes()[1:])

    def __call__(self, clips: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return the logits [B, K] of inputs [B, …]."""
        logits = np.empty((len(clips), *self.shapes[1]), np.float32)
        for number, clip in enumerate(torch.from_numpy(np.ascontiguousarray(clips))):
            (found,) = self._method.execute([clip[None]])
            logits[number] = found[0].numpy()
        return logits
